"""Which tile computes a problem: forced by a caller, read from the device's tuning table, or chosen by shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

import torch

from fused_kernels.problem import Problem
from fused_kernels.table import CUDNN, current_table
from fused_kernels.tiles import Tile

Chosen = Tile | Literal["cudnn"]
_forced: ContextVar[Callable[[Problem], Chosen | None] | None] = ContextVar("forced tiles", default=None)


@contextmanager
def choosing(choose: Callable[[Problem], Chosen | None]) -> Iterator[None]:
    """Ask ``choose`` first in this context; where it answers None, the usual order follows."""
    token = _forced.set(choose)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(problem: Problem, device: torch.device) -> Chosen:
    """The tile for ``problem`` on ``device``, or ``"cudnn"`` where a table says that cuDNN is faster there."""
    forced = _forced.get()
    if forced is not None and (chosen := forced(problem)) is not None:
        return chosen
    if device.type == "cuda" and (found := current_table(device).get(problem.key)) is not None:
        return found
    return default_tile(problem)


def default_tile(problem: Problem) -> Tile:
    """A tile that is right for every device and good for Hopper; see section 6 of the compile report in docs."""
    if problem.kind == "wgrad":
        return _wgrad_tile(problem)
    if problem.dtype == torch.float32:
        # no tensor cores in full precision: small tiles keep the accumulator in registers
        return Tile(
            _fit(problem.rows, 64), _fit(problem.cols, 64), _fit(problem.depth, 32), warps=4, stages=2
        )
    k = _fit(
        problem.depth,
        128 if problem.dtype == torch.int8 else 64,
        low=32 if problem.dtype == torch.int8 else 16,
    )
    n = _fit(problem.cols, 128)
    m = 256 if n <= 64 and problem.rows >= 256 * 132 else _fit(problem.rows, 128)
    warps = 8 if m * n >= 128 * 128 else 4
    return Tile(m, n, k, warps=warps, stages=3)


def _wgrad_tile(problem: Problem) -> Tile:
    c, k = _fit(problem.c, 128), _fit(problem.k, 128)
    if problem.dtype == torch.float32:
        c, k = min(c, 64), min(k, 64)
    pixels = 32 if problem.dtype == torch.float32 else _fit(problem.depth, 64)
    tiles = -(-problem.c // c) * -(-problem.k // k) * problem.conv.r * problem.conv.s
    steps = -(-problem.depth // pixels)
    # two waves of a Hopper's 132 processors, yet at least eight steps to each part
    splits = max(1, min(264 // tiles, steps // 8, 64))
    return Tile(c, k, pixels, warps=8 if c * k >= 128 * 128 else 4, stages=3, splits=splits)


def _fit(size: int, largest: int, *, low: int = 16) -> int:
    """The smallest power of two that holds ``size``, from ``low`` to ``largest``."""
    return max(low, min(largest, 1 << (size - 1).bit_length()))


__all__ = ["CUDNN", "Chosen", "choose", "choosing", "default_tile"]
