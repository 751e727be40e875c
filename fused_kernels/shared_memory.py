"""Shared memory: how much a program has, and how much a tile needs."""

from __future__ import annotations

from functools import cache

import torch

from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

_LIMITS = {
    80: 166_912,
    86: 101_376,
    87: 166_912,
    89: 101_376,
    90: 232_448,
    100: 232_448,
    103: 232_448,
    110: 232_448,
    120: 101_376,
    121: 101_376,
}
"""Bytes that one program may use, by compute capability; 1 KB less than the documented size of a processor."""
SMALLEST = 101_376
HOPPER = _LIMITS[90]

_SCRATCH = 2_560
"""Bytes beside the operands: sums that cross warps, and alignment. An upper bound over everything compiled here."""


def limit_of(capability: int) -> int:
    """Bytes of shared memory that a program may use on a GPU of ``capability`` (90 is 9.0)."""
    return _LIMITS.get(capability, SMALLEST)


def capability_of(device: torch.device) -> int:
    """The compute capability of a GPU: 90 is 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@cache
def limit_on(device: torch.device) -> int:
    """``limit_of`` a device; a Hopper's without a GPU, as in the interpreter or on the meta device."""
    return limit_of(capability_of(device)) if device.type == "cuda" else HOPPER


def needed_by(tile: Tile, problem: Problem) -> int:
    """An upper bound on the bytes that a kernel uses: an operand tile of each kind for every stage."""
    size = problem.dtype.itemsize
    if problem.kind != "chain":
        return tile.stages * (tile.m + tile.n) * tile.k * size + _SCRATCH
    window = tile.stages * (tile.m + problem.c) * tile.k
    # for a block of z: the weights before and after it and its residual; then the 3x3's result as an operand
    columns = tile.stages * tile.n * (problem.c + problem.following + tile.m) + tile.m * problem.c
    return max(window, columns) * size + _SCRATCH
