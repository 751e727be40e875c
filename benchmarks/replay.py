"""Races shown by pytest-benchmark.

pytest-benchmark times one callable after the other. Ours are timed in turns, before its clock runs; so its clock is one
that a replayed run moves on by what that run took in the race. The table, statistics and JSON are pytest-benchmark's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rescompile.measuring.timing import Timing


class ReplayClock:
    """Seconds that pass only when a run of a race is replayed."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time."""
        return self.now


CLOCK = ReplayClock()


def show(benchmark: Any, found: Timing) -> None:
    """Let ``benchmark`` show the runs that ``found`` kept; its options must name CLOCK as timer."""
    runs: Iterator[float] = iter(found.samples)

    def again() -> None:
        CLOCK.now += next(runs) / 1e3

    benchmark.pedantic(again, rounds=len(found.samples), iterations=1)
