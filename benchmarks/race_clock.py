"""Shows the timings of a race in pytest-benchmark's table and JSON.

pytest-benchmark times one callable after the other, but the contenders of a race take turns and are timed before it
starts. It therefore gets a clock that advances, call by call, by the time that the call took in the race.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rescompile.measuring.timing import Timing


class RaceClock:
    """A clock in seconds that only ``show`` advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The current time."""
        return self.now


CLOCK = RaceClock()


def show(benchmark: Any, found: Timing) -> None:
    """Let ``benchmark`` report the calls that ``found`` kept; its options must name CLOCK as timer."""
    runs: Iterator[float] = iter(found.samples)

    def again() -> None:
        CLOCK.now += next(runs) / 1e3

    benchmark.pedantic(again, rounds=len(found.samples), iterations=1)
