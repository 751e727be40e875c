"""Rounds that take turns, and steps captured in a CUDA graph; the GPU is a pretended one."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from benchmarks.gpu.timing import notes_of
from fused_kernels.tune import timing


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


class PretendedGraph:
    """A CUDA graph that notes what is done to it; ``refuses`` makes every capture fail."""

    refuses = False

    def __init__(self) -> None:
        self.replays = 0

    def capture_begin(self, pool: Any) -> None:
        assert not gc.isenabled()

    def capture_end(self) -> None:
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    def replay(self) -> None:
        self.replays += 1


class PretendedEvent:
    def __init__(self, **_: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: PretendedEvent) -> float:
        return 1e3 * (other.at - self.at)


@pytest.fixture
def pretended_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "CUDAGraph", PretendedGraph)
    monkeypatch.setattr(torch.cuda, "Event", PretendedEvent)
    monkeypatch.setattr(torch.cuda, "Stream", object)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)


@pytest.mark.usefixtures("pretended_cuda")
def test_a_step_is_captured_once_and_replayed() -> None:
    steps: list[int] = []
    replay = timing.Replay(lambda: steps.append(1), warmup=2)
    assert len(replay.times(5)) == 5
    assert isinstance(replay.graph, PretendedGraph)
    assert (len(steps), replay.graph.replays, replay.notes) == (3, 5, [])


@pytest.mark.usefixtures("pretended_cuda")
def test_a_step_that_cannot_be_captured_is_launched_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretendedGraph, "refuses", True)
    steps: list[int] = []
    replay = timing.Replay(lambda: steps.append(1), warmup=2)
    replay.times(5)
    assert len(steps) == 8
    assert replay.notes == [
        "not in a CUDA graph: RuntimeError: operation not permitted when stream is capturing"
    ]
    assert gc.isenabled()


@pytest.mark.usefixtures("pretended_cuda")
def test_the_tuner_flushes_the_cache_and_shares_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, pools = torch.ones(4), []
    monkeypatch.setattr(timing, "_flush_buffer", lambda: buffer)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(PretendedGraph, "capture_begin", lambda self, pool: pools.append(pool))
    found = timing.on_gpu([lambda: None, lambda: None])
    assert len(found) == 2
    assert all(milliseconds > 0 for milliseconds in found)
    assert not buffer.any()
    assert pools[0] is pools[1] is not None
