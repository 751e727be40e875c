"""A reduction over pixels in parts, for the gradients of weights: how long each is, and their sum in a fixed order."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_kernels.launch import Out, launch
from fused_kernels.operands.geometry import ceil_div
from fused_kernels.tiles import Tile

BLOCK = 1024


def parts_of(steps: int, splits: int) -> tuple[int, int]:
    """Steps of each part, and the number of parts: about ``splits``, or one if there are no steps.

    A loop's length is compiled in, so it is rounded up to four binary digits: most batch sizes then share kernels, and
    a part is at most an eighth longer than it need be.
    """
    wanted = max(1, ceil_div(steps, splits))
    unit = 1 << max(0, wanted.bit_length() - 4)
    length = ceil_div(wanted, unit) * unit
    return length, max(1, ceil_div(steps, length))


def workspace(dw: Tensor, parts: int) -> Tensor:
    """Memory for the parts: [parts, numel] fp32, or ``dw`` itself for a single part."""
    if parts == 1:
        return dw
    return torch.empty((parts, dw.numel()), dtype=torch.float32, device=dw.device)


def add_up(parts: Tensor, dw: Tensor) -> None:
    """dw = the sum of a ``workspace``, in the order of its parts."""
    if parts is dw:
        return
    launch(
        "wgrad.split_sum_kernel", (ceil_div(dw.numel(), BLOCK),), Tile(BLOCK, 1),
        parts_ptr=parts, dw_ptr=Out(dw), numel=dw.numel(), SPLITS=parts.shape[0], BLOCK=BLOCK,
    )  # fmt: skip
