"""Weights from checkpoint files and downloads, and the networks that they belong to."""
