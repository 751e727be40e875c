"""Prologues: steps from a loaded input tile to the matrix product.

A prologue is called as ``PROLOGUE(tile, ok, args)``: ``tile`` is [pixels, channels], ``ok`` (broadcast to it) is false
where the convolution reads padding or past the last channel, or None where the other operand is zero there. ``args``
are what ``load_args`` has loaded for the tile's channels.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.numerics import normalized, relu, scale_and_shift


@triton.jit
def load_args(prologue_args, channels, channel_ok, C):
    """A prologue's vectors at ``channels``: scale and shift of ``prologue_args`` = (vectors,), or nothing of ()."""
    if len(prologue_args) == 0:
        return prologue_args
    else:
        return scale_and_shift(prologue_args[0], channels, channel_ok, C)


@triton.jit
def identity(tile, ok, args):
    """Take the stored values unchanged."""
    return tile


@triton.jit
def bn_relu(tile, ok, args):
    """relu(x * scale + shift). Padding is zeroed afterwards, for relu(0 + shift) is not 0."""
    v = relu(normalized(tile, args[0], args[1]))
    if ok is not None:
        v = tl.where(ok, v, 0.0)
    return v.to(tile.dtype)
