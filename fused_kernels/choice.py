"""Choosing the tile for a problem: forced by the caller, read from the device's tuning table, or chosen by shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch
from torch import Tensor

from fused_kernels.candidates import candidates
from fused_kernels.gpus import HOPPER, limit_on
from fused_kernels.launch import uses_kernels
from fused_kernels.problem import Problem
from fused_kernels.table import REFERENCE, Chosen, current_table
from fused_kernels.tiles import Tile

_forced: ContextVar[Callable[[Problem], Chosen | None] | None] = ContextVar("forced tiles", default=None)


@contextmanager
def choosing(choose: Callable[[Problem], Chosen | None]) -> Iterator[None]:
    """Ask ``choose`` first in this context; if it answers None, the usual order follows."""
    token = _forced.set(choose)
    try:
        yield
    finally:
        _forced.reset(token)


def choose(problem: Problem, device: torch.device) -> Chosen:
    """The tile for ``problem`` on ``device``, or ``REFERENCE`` where a tuning table says that PyTorch is faster."""
    forced = _forced.get()
    if forced is not None and (chosen := forced(problem)) is not None:
        return chosen
    if device.type == "cuda" and (found := current_table(device).get(problem.key)) is not None:
        return found
    return default_tile(problem, shared=limit_on(device))


def chosen_for(problem: Problem, tensor: Tensor) -> Chosen:
    """``choose`` on the device of ``tensor``; ``REFERENCE`` where no kernels run on it."""
    return choose(problem, tensor.device) if uses_kernels(tensor) else REFERENCE


@lru_cache(maxsize=4096)
def default_tile(problem: Problem, *, shared: int = HOPPER) -> Tile:
    """The first of the ``candidates``: right on every GPU with ``shared`` bytes per program, and good on Hopper.

    It is never a flat one: only a tuner may pick those, because it checks the result. It is remembered, because every
    launch asks for it.
    """
    return candidates(problem, shared=shared)[0]


__all__ = ["REFERENCE", "Chosen", "choose", "choosing", "chosen_for", "default_tile"]
