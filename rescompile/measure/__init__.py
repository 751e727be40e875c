"""Measuring: races between calls, what disturbed them, and where the figures come from. Knows no engines."""
