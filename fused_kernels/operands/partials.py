"""Sums by tile, on their way from the kernel that computes a tile to the statistics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fused_kernels.operands.geometry import ceil_div


@dataclass(frozen=True)
class Partials:
    """[kinds, tiles, C]: one row for each tile of rows, so that they add up in a fixed order.

    Sums of a gradient are fp32, means and M2 of ``moments_dtype``.
    """

    rows: Tensor
    per_tile: int
    """Rows of the activation that a tile stands for; the last one stands for the rest."""
    count: int
    """Rows of the activation, N * H * W; of this process's part where ``counts`` is given."""
    counts: Tensor | None = None
    """fp64 [tiles] where tiles differ in size, as they do when gathered from several processes."""

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.rows.shape[1]

    @property
    def channels(self) -> int:
        """Number of channels, C."""
        return self.rows.shape[2]

    @staticmethod
    def empty(
        like: Tensor, kinds: int, per_tile: int, *, tiles: int | None = None, moments: bool = False
    ) -> Partials:
        """Unwritten rows for an activation ``like`` [N, C, H, W]: its moments, or sums of a gradient."""
        dtype = moments_dtype(like.dtype) if moments else torch.float32
        n, channels, h, w = like.shape
        tiles = ceil_div(n * h * w, per_tile) if tiles is None else tiles
        rows = torch.empty((kinds, tiles, channels), dtype=dtype, device=like.device)
        return Partials(rows, per_tile, n * h * w)


def moments_dtype(activation: torch.dtype) -> torch.dtype:
    """The dtype that a tile's mean and M2 are stored in: fp32 where the activation is 16 bits wide, fp64 otherwise.

    A mean of fp32 values, rounded to fp32, is off by up to 3e-5 std at mean/std = 1000, and the variance of two tiles
    with means one std apart would be off by 2e-5. The mean of 16-bit values that lie close to one another is exact in
    fp32: each has at most 11 binary digits, and a tile's sum 8 more.
    """
    return torch.float32 if activation in {torch.float16, torch.bfloat16} else torch.float64
