"""Contenders take turns until their medians are stable."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks.gpu import timing
from benchmarks.gpu.timing import notes_of


def test_percentiles_and_spread() -> None:
    found = timing.summary([float(value) for value in range(1, 12)])
    assert (found.median, found.min, found.p10, found.p90, found.rounds) == (6.0, 1.0, 2.0, 10.0, 11)
    assert found.spread == pytest.approx(8 / 6)


class Steady:
    """A contender that says when it was asked."""

    def __init__(self, name: str, order: list[str], times: Callable[[], float]) -> None:
        self.name, self.order, self.time, self.notes = name, order, times, []

    def times(self, count: int) -> list[float]:
        self.order.append(self.name)
        return [self.time() for _ in range(count)]


def test_contenders_take_turns_and_unstable_ones_get_more_rounds() -> None:
    order: list[str] = []
    steady = {name: Steady(name, order, lambda: 1.0) for name in "ab"}
    found = timing.race(steady, seconds=60, rounds=5)
    assert order == ["a", "b"] * 6  # once to warm up
    assert found["a"].rounds == 5
    values = iter(range(1, 1000))
    wild = {"c": Steady("c", order, lambda: float(next(values)))}
    found = timing.race(wild, seconds=60, rounds=5)
    assert found["c"].rounds == 10
    assert "c may be unstable because" in notes_of(found, wild)[0]
