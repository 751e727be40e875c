"""Measurements: nothing here is installed, and nothing that is installed imports it."""
