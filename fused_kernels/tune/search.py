"""Search for a problem's tile: verify every candidate, time the correct ones, keep the fastest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from fused_kernels.candidates import candidates
from fused_kernels.choice import Chosen, choosing
from fused_kernels.launch import implementation
from fused_kernels.problem import Problem
from fused_kernels.shared_memory import HOPPER
from fused_kernels.table import REFERENCE
from fused_kernels.tiles import Tile
from fused_kernels.tune.call import Call
from fused_kernels.tune.timing import Timer, first_line

Check = Callable[[Tile], str | None]
"""Returns what is wrong with a tile's results, or None."""


@dataclass(frozen=True)
class Outcome:
    """The result of the search for one problem."""

    problem: Problem
    milliseconds: dict[Tile | Literal["reference"], float]
    """Times of every correct candidate and of plain PyTorch."""
    dropped: dict[Tile, str]
    """Candidates that give wrong results or do not run, with the reason."""

    @property
    def best(self) -> Chosen:
        """The fastest of them."""
        return min(self.milliseconds, key=lambda chosen: self.milliseconds[chosen])


def search(problem: Problem, call: Call, check: Check, timer: Timer, *, shared: int = HOPPER) -> Outcome:
    """Try every candidate of ``problem``, and plain PyTorch.

    Args:
        problem: the problem to solve.
        call: its operation.
        check: checks a tile before it is timed.
        timer: times functions that run the operation.
        shared: bytes of shared memory that a program may use.
    """
    right: list[Tile] = []
    dropped: dict[Tile, str] = {}
    for tile in candidates(problem, shared=shared):
        wrong = _checked(check, tile)
        if wrong is None:
            right.append(tile)
        else:
            dropped[tile] = wrong
    names: list[Tile | Literal["reference"]] = [*right, REFERENCE]
    runs = [*(partial(_run, call, tile) for tile in right), partial(_run_reference, call)]
    return Outcome(problem, dict(zip(names, timer(runs), strict=True)), dropped)


def always(tile: Tile) -> Callable[[Problem], Tile]:
    """For ``choosing``: answers ``tile`` to every problem."""
    return lambda _: tile


def _checked(check: Check, tile: Tile) -> str | None:
    try:
        return check(tile)
    except Exception as error:
        # out of registers or shared memory on this GPU, or refused by this Triton: not a tile to choose
        return f"does not run: {first_line(error)}"


def _run(call: Call, tile: Tile) -> None:
    with choosing(always(tile)):
        call.launch()


def _run_reference(call: Call) -> None:
    with implementation("reference"):
        call.launch()
