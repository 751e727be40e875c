"""Zero sums: the part of a padded 3x3 convolution's sums that an input's zero point adds.

Where a tensor's zero is stored as the integer z, its values are q - z and its padding is zero. With padding read as 0,

    sum over taps inside the plane of w * (q - z)  =  sum over all taps of w * q  -  z * sum over taps inside of w

and the second sum depends only on the channel and on the borders of the plane that the window crosses. ``zero_sums``
has a row for each of the 16 combinations of borders, a sum of ``ABOVE``, ``BELOW``, ``LEFT`` and ``RIGHT``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fused_kernels.errors import ShapeError
from fused_kernels.operands.geometry import Conv

ABOVE, BELOW, LEFT, RIGHT = 1, 2, 4, 8
COMBINATIONS = 16
_SIDE = 3


def has_zero_sums(conv: Conv) -> bool:
    """Whether kernels add zero sums to convolutions with this window: 3x3 with padding 1, at any stride."""
    return (conv.r, conv.s, conv.padding) == (_SIDE, _SIDE, 1)


def zero_sums(w: Tensor, zero_point: int) -> Tensor:
    """The part that ``zero_point`` adds to the sums of an int8 convolution, 3x3 with padding 1.

    Args:
        w: int8 [K, C, 3, 3].
        zero_point: the integer that stands for zero in the input.

    Returns:
        int32 [16, K], a row for each combination of borders.

    Raises:
        ShapeError: another window.
    """
    if w.ndim != 4 or w.shape[2:] != (_SIDE, _SIDE):
        raise ShapeError(f"w is {tuple(w.shape)}: zero sums belong to a 3x3 convolution, [K, C, 3, 3]")
    taps = w.long().sum(dim=1)
    rows = []
    for borders in range(COMBINATIONS):
        inside = taps.clone()
        for border, outside in (
            (ABOVE, inside[:, :1]),
            (BELOW, inside[:, -1:]),
            (LEFT, inside[:, :, :1]),
            (RIGHT, inside[:, :, -1:]),
        ):
            if borders & border:
                outside.zero_()
        rows.append(-zero_point * inside.sum(dim=(1, 2)))
    return torch.stack(rows).to(torch.int32)


def crossed_borders(conv: Conv, height: int, width: int) -> Tensor:
    """int64 [P, Q]: the borders of a plane [height, width] that the window of each output pixel crosses."""
    p, q = conv.output_size(height, width)
    top, left = (torch.arange(size) * conv.stride - conv.padding for size in (p, q))
    rows = ABOVE * (top < 0) + BELOW * (top + conv.r > height)
    columns = LEFT * (left < 0) + RIGHT * (left + conv.s > width)
    return rows[:, None] + columns
