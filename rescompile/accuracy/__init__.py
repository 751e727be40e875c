"""Accuracy of an engine against its reference, as a whole and by block."""
