"""Processes that share the GPU: the lock between them, and peers that compile."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gpu.gpu_lock import GpuLock, hold_while_inductor_times
from benchmarks.gpu.peers import PeerProcesses, priorities
from benchmarks.gpu.workloads import Workload
from tests.benchmarks.gpu import scripted
from tests.waiting import until


def test_the_workloads_of_the_bars_are_compiled_first() -> None:
    names = [workload.name for workload in priorities([32, 128, 256], ["layer1.1"])]
    assert names[:3] == ["train-b256", "infer-b128", "block-layer1.1-b256"]
    assert sorted(names) == sorted(set(names))
    assert {"train-b32", "train-b128", "infer-b1", "infer-b32", "infer-b256"} <= set(names)


def test_two_processes_never_hold_the_gpu_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, enough, mine = context.Event(), context.Event(), threading.Event()
    process = context.Process(target=scripted.hold, args=(tmp_path / "lock", ready, enough))
    process.start()
    assert ready.wait(120)
    lock = GpuLock(tmp_path / "lock")

    def take() -> None:
        with lock.held(), lock.held():  # re-entrant
            mine.set()

    taker = threading.Thread(target=take)
    taker.start()
    assert not mine.wait(0.3), "both hold it"
    enough.set()
    assert mine.wait(120)
    taker.join()
    process.join()


def test_a_lingering_lock_is_kept_between_uses_and_given_back_in_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lingering = GpuLock(path, linger=600.0, longest=600.0)
    with lingering.held():
        pass
    assert is_locked(path)
    other = tmp_path / "other"
    lock = GpuLock(other, linger=0.3, longest=600.0)
    with lock.held():
        assert is_locked(other)
    until(lambda: not is_locked(other))
    path = tmp_path / "third"
    brief = GpuLock(path, linger=600.0, longest=0.0)
    with brief.held():
        assert is_locked(path)
    assert not is_locked(path)


def is_locked(path: Path) -> bool:
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@pytest.mark.parametrize("newer", [True, False])
def test_inductor_holds_the_lock_while_it_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, newer: bool
) -> None:
    from torch._inductor.runtime import benchmarking

    given: list[Any] = []
    timer = SimpleNamespace(benchmark_gpu=lambda step: step())
    monkeypatch.setattr(benchmarking, "benchmarker", timer)
    monkeypatch.setattr(benchmarking, "set_gpu_benchmark_lock_context", given.append, raising=False)
    if not newer:
        monkeypatch.delattr(benchmarking, "set_gpu_benchmark_lock_context")
    lock = GpuLock(tmp_path / "lock")
    assert hold_while_inductor_times(lock) is None
    assert given == ([lock.held] if newer else [])
    assert timer.benchmark_gpu(lambda: lock.depth) == (0 if newer else 1)


def test_a_peer_that_dies_without_a_word_has_failed(tmp_path: Path) -> None:
    peers = PeerProcesses(tmp_path, "no such device", True, [Workload("infer", 2)])
    peers.poll()
    (process,) = peers.running.values()
    process.wait(120)
    peers.poll()
    status = json.loads((tmp_path / "infer-b2.json").read_text("utf-8"))
    assert status["state"] == "failed"
    assert "no such device" in status["reason"]
    peers.stop()
