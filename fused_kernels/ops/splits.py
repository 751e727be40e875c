"""A reduction over pixels in parts, for the gradients of weights: how long each is, and their sum in a fixed order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fused_kernels.launch import Out, launch
from fused_kernels.operands.geometry import ceil_div
from fused_kernels.tiles import Tile

BLOCK = 128
"""Elements a program: few, so that there are many programs."""
ROWS = 32
"""Parts that a program reads at a time."""


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


@dataclass(frozen=True)
class SplitSum:
    """A sum that is still to be computed: ``dw`` of a ``workspace`` of several parts, in their order."""

    parts: Tensor
    dw: Tensor

    @property
    def splits(self) -> int:
        """Number of parts."""
        return self.parts.shape[0]

    @property
    def programs(self) -> int:
        """Programs that compute it."""
        return ceil_div(self.dw.numel(), BLOCK)

    @property
    def args(self) -> tuple[Any, ...]:
        """The kernel's tuple."""
        return self.parts, Out(self.dw), self.dw.numel()


def add_up(parts: Tensor, dw: Tensor, later: list[SplitSum] | None = None) -> None:
    """dw = the sum of a ``workspace``; only noted in ``later`` where that is given."""
    if parts is dw:
        return
    split_sum = SplitSum(parts, dw)
    if later is None:
        launch_sum(split_sum)
    else:
        later.append(split_sum)


def launch_sum(split_sum: SplitSum) -> None:
    """Compute it in a launch of its own."""
    launch(
        "wgrad.split_sum_kernel", (split_sum.programs,), Tile(BLOCK, 1),
        split_sum=split_sum.args, SPLITS=split_sum.splits, ROWS=ROWS, BLOCK=BLOCK,
    )  # fmt: skip
