"""Tensors as kernels take and return them: memory layout, windows, dtypes, packed images, partial sums."""
