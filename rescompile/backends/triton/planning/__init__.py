"""Fused steps planned as launches: recorded on meta tensors, placed in an arena, compiled ahead of time."""
