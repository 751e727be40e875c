"""Batch norm's small vectors, forward and backward; kernels in ``kernels/statistics.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_kernels.launch import Out, kernels_run_on, launch, uses_kernels
from fused_kernels.operands.geometry import ceil_div
from fused_kernels.operands.partials import Partials
from fused_kernels.references import statistics as references
from fused_kernels.tiles import Tile

CHANNELS = 8
"""Channels a program: 32 bytes of fp32, one memory sector."""
ROWS = 128
"""Tiles a step."""
TILE = Tile(ROWS, CHANNELS, warps=4)


def finalize(
    partials: Partials,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
) -> tuple[Tensor, Tensor | None]:
    """Batch statistics from partials of kinds (mean, M2).

    Args:
        partials: from ``conv_moments``, or gathered from several processes.
        gamma: weight of the batch norm, [C].
        beta: its bias, [C].
        eps: added to the variance.
        running: running mean and variance [C], or None where they are not tracked.
        momentum: weight of the new value in the running statistics.

    Returns:
        vectors fp32 [4, C] (mean, invstd, scale, shift), and the running statistics' next values [2, C] or None; the
        variance that normalizes is the biased one, the one that is tracked the unbiased one.
    """
    if not uses_kernels(gamma):
        return references.finalize(partials, gamma, beta, eps, running, momentum)
    channels = partials.channels
    vectors = torch.empty((4, channels), dtype=torch.float32, device=gamma.device)
    new = None if running is None else torch.empty((2, channels), dtype=torch.float32, device=gamma.device)
    launch(
        "statistics.finalize_kernel", (ceil_div(channels, CHANNELS),), TILE,
        partials_ptr=partials.rows, counts_ptr=partials.counts, gamma_ptr=gamma, beta_ptr=beta,
        running_mean_ptr=None if running is None else running[0],
        running_var_ptr=None if running is None else running[1],
        vectors_ptr=Out(vectors), new_running_ptr=None if new is None else Out(new),
        tiles=partials.tiles, count=partials.count, rows=partials.per_tile, momentum=float(momentum), eps=float(eps),
        C=channels, **_loop(partials.tiles),
    )  # fmt: skip
    return vectors, new


def merge(partials: Partials) -> Tensor:
    """Mean and M2 of all rows, fp64 [2, C], as one process sends them to the others."""
    rows = partials.rows
    if not kernels_run_on(rows.device):
        return references.merge(partials)
    out = torch.empty((2, partials.channels), dtype=torch.float64, device=rows.device)
    launch(
        "statistics.merge_kernel", (ceil_div(partials.channels, CHANNELS),), TILE,
        partials_ptr=rows, out_ptr=Out(out), tiles=partials.tiles, count=partials.count, rows=partials.per_tile,
        C=partials.channels, **_loop(partials.tiles),
    )  # fmt: skip
    return out


def frozen(running: tuple[Tensor, Tensor], gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """The vectors of ``finalize`` from running statistics, for a batch norm in eval mode."""
    mean, variance = running
    if not uses_kernels(mean):
        return references.frozen(running, gamma, beta, eps)
    vectors = torch.empty((4, mean.numel()), dtype=torch.float32, device=mean.device)
    launch(
        "statistics.frozen_kernel", (ceil_div(mean.numel(), 128),), Tile(1, 128),
        running_mean_ptr=mean, running_var_ptr=variance, gamma_ptr=gamma, beta_ptr=beta, vectors_ptr=Out(vectors),
        eps=float(eps), C=mean.numel(), BLOCK_C=128,
    )  # fmt: skip
    return vectors


def sums(partials: Partials) -> Tensor:
    """Total of each kind, fp32 [kinds, C]."""
    rows = partials.rows
    if not uses_kernels(rows):
        return references.sums(partials)
    kinds, tiles, channels = rows.shape
    out = torch.empty((kinds, channels), dtype=torch.float32, device=rows.device)
    launch(
        "statistics.sums_kernel", (ceil_div(channels, CHANNELS), kinds), TILE,
        partials_ptr=rows, sums_ptr=Out(out), tiles=tiles, C=channels, **_loop(tiles),
    )  # fmt: skip
    return out


def coefficients(sum_g: Tensor, sum_gy: Tensor, vectors: Tensor, count: int, *, is_frozen: bool) -> Tensor:
    """a, b, c of dy = a * g + b * (y - mean) + c, fp32 [3, C].

    Args:
        sum_g: sum of g over all ``count`` rows, [C].
        sum_gy: sum of g * (y - mean), [C].
        vectors: of the batch norm.
        count: rows that the statistics were taken over, on all processes.
        is_frozen: the statistics are constants, so that b = c = 0.
    """
    if not uses_kernels(vectors):
        return references.coefficients(sum_g, sum_gy, vectors, count, is_frozen=is_frozen)
    channels = vectors.shape[1]
    out = torch.empty((3, channels), dtype=torch.float32, device=vectors.device)
    launch(
        "statistics.coefficients_kernel", (ceil_div(channels, 128),), Tile(1, 128),
        sum_g_ptr=sum_g, sum_gy_ptr=sum_gy, vectors_ptr=vectors, out_ptr=Out(out),
        count=count, C=channels, FROZEN=is_frozen, BLOCK_C=128,
    )  # fmt: skip
    return out


def _loop(tiles: int) -> dict[str, int]:
    # a power of two, because the loop's length is compiled in
    return {"STEPS": 1 << (ceil_div(tiles, ROWS) - 1).bit_length(), "BLOCK": ROWS, "BLOCK_C": CHANNELS}
