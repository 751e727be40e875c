"""Packed images, as stems read them: rows of four-channel pixels with padding, so that a tap row is one vector.

An image has three channels, too few for a matrix product over channels. It is packed as [N, H, WIDTH, 4], with zeros
to the left, to the right and in missing channels. Then the S pixels under one kernel row lie side by side. With the
T - S pixels after them, which meet zero weights, they are one vector of ``depth`` = 4 * T elements; T is the next power
of two. The convolution is a product over R taps of that depth (32 for 7x7, 16 for 3x3), which starts at pixel
stride * q of row stride * p - padding + r. Rows are not padded: the kernel masks them.

The weight is packed in the same way, from [K, C, R, S] to [K, R, depth].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fused_kernels.operands.geometry import Conv, ceil_div
from fused_kernels.operands.layout import nhwc

PIXEL = 4
"""Elements of a pixel: its channels, rounded up to one load."""
DIVISOR = 16
"""Triton specializes integer arguments that 16 divides. For such a width it derives the alignment of every pixel pair,
and loads 16 bytes at once where the stride is 2."""


def span(conv: Conv) -> int:
    """T: pixels of one tap row."""
    return 1 << (conv.s - 1).bit_length()


def depth(conv: Conv) -> int:
    """Elements of one tap row."""
    return PIXEL * span(conv)


def packed_width(conv: Conv, width: int, columns: int) -> int:
    """Pixels of a packed row: the image with its left padding, and all that ``columns`` output columns read."""
    needed = max(conv.padding + width, (columns - 1) * conv.stride + span(conv))
    return ceil_div(needed, DIVISOR) * DIVISOR


def pack_weight(w: Tensor, conv: Conv) -> Tensor:
    """[K, C, R, S] to [K, R, depth], zero for missing channels and taps."""
    k, c, r, s = w.shape
    padded = F.pad(w.permute(0, 2, 3, 1), (0, PIXEL - c, 0, span(conv) - s))
    return padded.reshape(k, r, depth(conv)).contiguous()


def unpack_weight(packed: Tensor, conv: Conv, channels: int) -> Tensor:
    """[K, R, depth] to [K, channels, R, S] in KRSC memory: the inverse of ``pack_weight``."""
    k, r, _ = packed.shape
    taps = packed.reshape(k, r, span(conv), PIXEL)[:, :, : conv.s, :channels]
    return nhwc(taps.permute(0, 3, 1, 2))
