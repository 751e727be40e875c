"""How the stem sees its image: rows of four-channel pixels with the padding in place, so that a tap row is one vector.

An image has three channels, too few for a matrix product over channels. Packed as [N, H, WIDTH, 4], zeros to the left,
to the right and in the channels that it lacks, the S pixels under one kernel row lie side by side: together with the
T - S pixels after them, whose weights are zero, they are one vector of ``depth`` = 4 * T elements, T the next power of
two. The convolution is then a product over R taps of that depth (32 for 7x7, 16 for 3x3), which starts at pixel
stride * q of row stride * p - padding + r. Rows are not padded: the core masks them.

The weight is packed likewise, [K, C, R, S] to [K, R, depth].
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fused_kernels.operands.geometry import Conv, ceil_div
from fused_kernels.operands.layout import nhwc

PIXEL = 4
"""Elements a pixel: channels, rounded up to what is loaded at once."""
DIVISOR = 16
"""Triton knows that an integer argument divides by 16, and by no other number: of a width that does, it derives the
alignment of every pixel pair, hence 16-byte loads where the stride is 2."""


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
    """[K, C, R, S] to [K, R, depth], zero where an image has no channel or a window no tap."""
    k, c, r, s = w.shape
    padded = F.pad(w.permute(0, 2, 3, 1), (0, PIXEL - c, 0, span(conv) - s))
    return padded.reshape(k, r, depth(conv)).contiguous()


def unpack_weight(packed: Tensor, conv: Conv, channels: int) -> Tensor:
    """[K, R, depth] to [K, channels, R, S] in KRSC memory: the inverse of ``pack_weight``."""
    k, r, _ = packed.shape
    taps = packed.reshape(k, r, span(conv), PIXEL)[:, :, : conv.s, :channels]
    return nhwc(taps.permute(0, 3, 1, 2))
