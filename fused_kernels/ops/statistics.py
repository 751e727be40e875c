"""Batch norm's small vectors, forward and backward; kernels in ``kernels/statistics.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fused_kernels.launch import Out, kernels_run_on, launch, uses_kernels
from fused_kernels.operands.geometry import ceil_div
from fused_kernels.operands.partials import Partials
from fused_kernels.ops.splits import BLOCK as SPLIT_BLOCK
from fused_kernels.ops.splits import ROWS as SPLIT_ROWS
from fused_kernels.ops.splits import SplitSum, launch_sum
from fused_kernels.references import statistics as references
from fused_kernels.tiles import Tile

CHANNELS = 8
"""Channels a program: 32 bytes of fp32, one memory sector."""
ROWS = 512
"""Tiles a step: 16 KB of fp32, because only a few programs share the memory's bandwidth and each waits for its own."""
MOST_TILES = 16_384
"""Most tiles that one program reads, in 32 steps; more are added up in groups first, which costs a launch."""
GROUP = Tile(64, 32)
"""Tiles and channels a step of a group."""
GROUP_STEPS = 2


@dataclass(frozen=True)
class Finalized:
    """What ``finalize`` takes."""

    partials: Partials
    """Means and sums of squares (M2) by tile, from ``conv_moments``, or gathered from several processes."""
    gamma: Tensor
    """Weight of the batch norm, [C]."""
    beta: Tensor
    """Its bias, [C]."""
    eps: float
    """Added to the variance."""
    running: tuple[Tensor, Tensor] | None
    """Running mean and variance [C], or None where they are not tracked."""
    momentum: float
    """Weight of the new value in the running statistics."""


def finalize(
    partials: Partials,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
) -> tuple[Tensor, Tensor | None]:
    """Batch statistics from partials of kinds (mean, M2); the arguments are the fields of ``Finalized``.

    Returns:
        vectors fp32 [4, C] (mean, invstd, scale, shift), and the running statistics' next values [2, C] or None; the
        variance that normalizes is the biased one, the one that is tracked the unbiased one.
    """
    return finalize_all([Finalized(partials, gamma, beta, eps, running, momentum)])[0]


def finalize_all(layers: Sequence[Finalized]) -> list[tuple[Tensor, Tensor | None]]:
    """``finalize`` of one layer, or in one launch of two layers with equally many channels."""
    if not uses_kernels(layers[0].gamma):
        return [references.finalize(**vars(layer)) for layer in layers]
    layers = [replace(layer, partials=_in_groups(layer.partials, moments=True)) for layer in layers]
    channels, tiles = layers[0].partials.channels, max(layer.partials.tiles for layer in layers)
    made, args = [], []
    for layer in layers:
        partials, running = layer.partials, layer.running
        vectors = torch.empty((4, channels), dtype=torch.float32, device=layer.gamma.device)
        new = None if running is None else vectors.new_empty((2, channels))
        made.append((vectors, new))
        args.append(
            (partials.rows, partials.counts, layer.gamma, layer.beta, *(running or (None, None)), Out(vectors),
             None if new is None else Out(new), partials.tiles, partials.count, partials.per_tile,
             float(layer.momentum), float(layer.eps))
        )  # fmt: skip
    tile = _tile(tiles)
    launch(
        "statistics.finalize_kernel", (ceil_div(channels, CHANNELS), len(layers)), tile,
        layer=args[0], other_layer=args[1] if len(args) > 1 else None, C=channels, LAYERS=len(layers),
        **_loop(tiles, tile),
    )  # fmt: skip
    return made


def merge(partials: Partials) -> Tensor:
    """Mean and M2 of all rows, fp64 [2, C], as one process sends them to the others."""
    rows = partials.rows
    if not kernels_run_on(rows.device):
        return references.merge(partials)
    partials = _in_groups(partials, moments=True)
    out = torch.empty((2, 1, partials.channels), dtype=torch.float64, device=rows.device)
    tile = _tile(partials.tiles)
    _merge(partials, out, tile, **_loop(partials.tiles, tile))
    return out[:, 0]


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
    partials = _in_groups(partials)
    kinds, tiles, channels = partials.rows.shape
    out = torch.empty((kinds, 1, channels), dtype=torch.float32, device=rows.device)
    tile = _tile(tiles)
    _add_up(partials, out, tile, **_loop(tiles, tile))
    return out[:, 0]


class NormGradient(NamedTuple):
    """Gradients of one batch norm."""

    coefficients: Tensor
    """a, b, c of dy = a * g + b * (y - mean) + c, fp32 [3, C], for ``passes.bn_backward``."""
    dgamma: Tensor
    dbeta: Tensor


def norm_gradients(
    partials: Partials, layers: Sequence[tuple[Tensor, bool]], pending: Sequence[SplitSum] = ()
) -> list[NormGradient]:
    """Gradients of the batch norms whose outputs a gradient g meets, in one launch.

    Args:
        partials: of kinds (sum g, sum g * (y - mean)) and, for a second layer, sum g * (d - mean_d), over
            ``partials.count`` rows, those of all processes.
        layers: of one layer or two, the batch norm's vectors, and whether its statistics are constants, so that
            b = c = 0.
        pending: split reductions to add up in the same launch.
    """
    rows = partials.rows
    if not uses_kernels(rows):
        for split_sum in pending:
            launch_sum(split_sum)
        return [
            NormGradient(*references.norm_gradient(partials, 1 + index, vectors, is_frozen=is_frozen))
            for index, (vectors, is_frozen) in enumerate(layers)
        ]
    for split_sum in pending[2:]:
        launch_sum(split_sum)
    summed = _in_groups(partials)
    _, tiles, channels = summed.rows.shape
    made = [
        NormGradient(*(vectors.new_empty(shape) for shape in ((3, channels), channels, channels)))
        for vectors, _ in layers
    ]
    args = [(vectors, *map(Out, own)) for (vectors, _), own in zip(layers, made, strict=True)]
    tile, riding = _tile(tiles), pending[:2]
    first, second = (*riding, None, None)[:2]
    grid = len(layers) * ceil_div(channels, CHANNELS) + sum(split_sum.programs for split_sum in riding)
    launch(
        "statistics.norm_gradients_kernel", (grid,), tile,
        layer=args[0], other_layer=args[1] if len(args) > 1 else None,
        split_sum=None if first is None else first.args, other_split_sum=None if second is None else second.args,
        partials_ptr=summed.rows, tiles=tiles, count=partials.count, C=channels,
        FROZEN=layers[0][1], OTHER_FROZEN=layers[-1][1], **_loop(tiles, tile),
        SPLITS=0 if first is None else first.splits, OTHER_SPLITS=0 if second is None else second.splits,
        SPLIT_ROWS=SPLIT_ROWS, SPLIT_BLOCK=SPLIT_BLOCK,
    )  # fmt: skip
    return made


def _in_groups(partials: Partials, *, moments: bool = False) -> Partials:
    """The same partials, or those of groups of their tiles, in fp64, where there are more than ``MOST_TILES``."""
    kinds, tiles, channels = partials.rows.shape
    if tiles <= MOST_TILES or partials.counts is not None:
        return partials
    size = GROUP.m * GROUP_STEPS
    out = partials.rows.new_empty((kinds, ceil_div(tiles, size), channels), dtype=torch.float64)
    reduce = _merge if moments else _add_up
    reduce(partials, out, GROUP, STEPS=GROUP_STEPS, BLOCK=GROUP.m, BLOCK_C=GROUP.n)
    return Partials(out, partials.per_tile * size, partials.count)


def _merge(partials: Partials, out: Tensor, tile: Tile, **loop: int) -> None:
    """Mean and M2 of each group of tiles into ``out`` [2, groups, C]."""
    launch(
        "statistics.merge_kernel", (ceil_div(partials.channels, loop["BLOCK_C"]), out.shape[1]), tile,
        partials_ptr=partials.rows, out_ptr=Out(out), tiles=partials.tiles, count=partials.count,
        rows=partials.per_tile, C=partials.channels, **loop,
    )  # fmt: skip


def _add_up(partials: Partials, out: Tensor, tile: Tile, **loop: int) -> None:
    """The total of each kind in each group of tiles into ``out`` [kinds, groups, C]."""
    kinds, groups, channels = out.shape
    launch(
        "statistics.sums_kernel", (ceil_div(channels, loop["BLOCK_C"]), kinds, groups), tile,
        partials_ptr=partials.rows, sums_ptr=Out(out), tiles=partials.tiles, C=channels, **loop,
    )  # fmt: skip


def _tile(tiles: int) -> Tile:
    """ROWS tiles a step, or as few as there are."""
    rows = min(ROWS, max(64, 1 << (tiles - 1).bit_length()))
    return Tile(rows, CHANNELS, warps=8 if rows == ROWS else 4)


def _loop(tiles: int, tile: Tile) -> dict[str, int]:
    # a power of two, because the loop's length is compiled in
    return {"STEPS": 1 << (ceil_div(tiles, tile.m) - 1).bit_length(), "BLOCK": tile.m, "BLOCK_C": CHANNELS}
