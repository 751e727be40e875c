"""Version of the arithmetic, in a module of its own so that it can be read without importing anything."""

VERSION = "0.2.0"
"""Raised whenever the same images and weights would give other numbers; every calibration table carries it."""
