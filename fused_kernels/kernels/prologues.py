"""Prologues: steps from a loaded input tile to the matrix product.

A prologue is called as ``PROLOGUE(tile, ok, args, channels, channel_ok, C)``: ``tile`` is [pixels, channels], ``ok``
(broadcast to it) is false where the convolution reads padding or past the last channel, or None where the other operand
is zero there.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.numerics import batch_norm, relu


@triton.jit
def identity(tile, ok, args, channels, channel_ok, C):
    """Take the stored values unchanged."""
    return tile


@triton.jit
def bn_relu(tile, ok, args, channels, channel_ok, C):
    """relu(x * scale + shift); ``args`` = (vectors,). Padding is zeroed afterwards, for relu(0 + shift) is not 0."""
    v = relu(batch_norm(tile, args[0], channels, channel_ok, C))
    if ok is not None:
        v = tl.where(ok, v, 0.0)
    return v.to(tile.dtype)
