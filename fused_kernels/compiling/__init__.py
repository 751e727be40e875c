"""Compiling kernels ahead of time, for any supported GPU, on a machine that has none."""
