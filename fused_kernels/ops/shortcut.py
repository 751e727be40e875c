"""The shortcut without parameters of CIFAR networks, as a launch of its own: ``kernels/shortcut.py``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_kernels.errors import ShapeError
from fused_kernels.launch import Out, launch, uses_kernels
from fused_kernels.operands.arguments import Pixels
from fused_kernels.operands.geometry import ceil_div
from fused_kernels.operands.layout import empty_nhwc, nhwc
from fused_kernels.ops.passes import pass_tile


def widen(x: Tensor, *, stride: int, before: int, after: int, zero_point: int = 0) -> Tensor:
    """Every ``stride``-th pixel of ``x``, with ``before`` and ``after`` channels of zeros around its own.

    Args:
        x: [N, C, H, W] of any dtype that kernels store.
        stride: 1 or more.
        before: channels of zeros in front.
        after: channels of zeros behind.
        zero_point: the integer that stands for zero in an int8 ``x``.

    Returns:
        [N, before + C + after, ceil(H / stride), ceil(W / stride)] in the dtype of ``x`` and NHWC memory.

    Raises:
        ShapeError: a number that makes no shortcut.
    """
    if x.ndim != 4 or stride < 1 or before < 0 or after < 0:
        raise ShapeError(
            f"x {tuple(x.shape)}, stride {stride} and {before} + {after} channels make no shortcut: x is"
            " [N, C, H, W], the stride 1 or more, and channels are added"
        )
    if zero_point and (x.dtype != torch.int8 or not -128 <= zero_point <= 127):
        raise ShapeError(f"a zero point of {zero_point} needs an int8 x, here {x.dtype}, and must fit int8")
    if not uses_kernels(x):
        return nhwc(F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, after), value=zero_point))
    n, c, h, w = x.shape
    y = empty_nhwc(x, n, before + c + after, ceil_div(h, stride), ceil_div(w, stride))
    pixels = Pixels.over(n, (h, w), y.shape[2:])
    channels = y.shape[1]
    tile = pass_tile(channels)
    launch(
        "shortcut.widen_kernel", (ceil_div(pixels.m, tile.m), ceil_div(channels, tile.n)), tile,
        x_ptr=nhwc(x), y_ptr=Out(y), **pixels.named(), DEPTH=c, C=channels,
        STRIDE=stride, BEFORE=before, ZERO=zero_point, BLOCK_M=tile.m, BLOCK_C=tile.n,
    )  # fmt: skip
    return y
