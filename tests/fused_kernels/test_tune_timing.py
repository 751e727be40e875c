"""Rounds that take turns, and steps captured in a CUDA graph; the GPU is a pretended one."""

from __future__ import annotations

import gc
import time
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from fused_kernels.tune import timing


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
