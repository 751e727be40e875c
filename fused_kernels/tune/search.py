"""Search for a problem's tile: verify every candidate, time the correct ones, keep the fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import wait
from dataclasses import dataclass
from functools import partial

import torch

from fused_kernels.candidates import candidates
from fused_kernels.choice import Chosen, choosing
from fused_kernels.compiling.pool import CompilePool
from fused_kernels.compiling.variant import variant_of
from fused_kernels.gpus import HOPPER
from fused_kernels.launch import Launch, implementation, recording
from fused_kernels.problem import Problem
from fused_kernels.table import REFERENCE
from fused_kernels.tiles import Tile
from fused_kernels.tune.call import Call, call_of
from fused_kernels.tune.timing import Timer, first_line

Check = Callable[[Tile], str | None]
"""Returns what is wrong with a tile's results, or None."""


@dataclass(frozen=True)
class Outcome:
    """The result of the search for one problem."""

    problem: Problem
    milliseconds: dict[Chosen, float]
    """Times of every correct candidate and of plain PyTorch."""
    dropped: dict[Tile, str]
    """Candidates that give wrong results or do not run, with the reason."""

    @property
    def best(self) -> Chosen:
        """The fastest of them."""
        return min(self.milliseconds, key=lambda chosen: self.milliseconds[chosen])


def search(
    problem: Problem,
    call: Call,
    check: Check,
    timer: Timer,
    *,
    shared: int = HOPPER,
    tiles: Sequence[Tile] | None = None,
) -> Outcome:
    """Try every candidate of ``problem``, or ``tiles`` in their place, and plain PyTorch.

    ``check`` judges a tile before ``timer`` times its ``call``; ``shared`` is the bytes of shared memory a program has.
    """
    dropped: dict[Tile, str] = {}
    runs: dict[Chosen, Callable[[], None]] = {}
    for tile in candidates(problem, shared=shared) if tiles is None else tiles:
        if wrong := _checked(check, tile):
            dropped[tile] = wrong
        else:
            runs[tile] = partial(_run, call, tile)
    runs[REFERENCE] = partial(_run, call, REFERENCE)
    return Outcome(problem, dict(zip(runs, timer(list(runs.values())), strict=True)), dropped)


def launches_of(problems: Iterable[Problem], *, shared: int) -> Iterator[Launch]:
    """Every launch of every candidate, on tensors without values."""
    for problem in problems:
        for tile in candidates(problem, shared=shared):
            yield from launches_with(problem, tile)


def launches_with(problem: Problem, tile: Tile) -> list[Launch]:
    """The launches of one tile, on tensors without values."""
    with recording() as launches:
        _run(call_of(problem, torch.device("meta")), tile)
    return launches


def precompile(problems: Iterable[Problem], capability: int, *, shared: int, jobs: int | None = None) -> int:
    """Compile all that ``search`` will launch, in parallel; returns how many kernels that were.

    A search otherwise waits mostly for one core that compiles. The results stay in Triton's cache, where launches on
    GPUs of ``capability`` (90 is 9.0) find them. A tile that does not compile is left for the search to find.
    """
    variants = dict.fromkeys(variant_of(launch) for launch in launches_of(problems, shared=shared))
    with CompilePool(jobs) as pool:
        wait([pool.submit(variant, capability) for variant in variants])
    return len(variants)


def _checked(check: Check, tile: Tile) -> str | None:
    try:
        return check(tile)
    except Exception as error:
        # out of registers or shared memory on this GPU, or refused by this Triton: not a tile to choose
        return f"does not run: {first_line(error)}"


def _run(call: Call, chosen: Chosen) -> None:
    with implementation("reference") if chosen == REFERENCE else choosing(lambda _: chosen):
        call.launch()
