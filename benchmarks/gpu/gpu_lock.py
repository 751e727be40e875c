"""One process on the GPU at a time, so that nobody's timing meets somebody else's work.

The peers that ``torch.compile`` makes tune themselves by timing while the main process checks results. Both hold this
lock when they time. It is a file's lock, which the system frees when its holder dies.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

FAIRNESS = 0.002
"""Seconds that a holder waits after giving the lock back, or it would take it again before anyone else wakes up."""


class GpuLock:
    """A re-entrant lock between processes; ``path`` is any file that all of them may write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.depth = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock in this context."""
        self.depth += 1
        try:
            if self.depth > 1:
                yield
                return
            with self.path.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
            time.sleep(FAIRNESS)
        finally:
            self.depth -= 1


def hold_while_inductor_times(lock: GpuLock) -> str | None:
    """Make this process's ``torch.compile`` hold ``lock`` while it times candidates; why it cannot, or None."""
    try:
        from torch._inductor.runtime import benchmarking
    except ImportError as error:
        return f"Inductor's benchmarks could not be told to wait ({error})"
    set_context: Callable[[Callable[[], AbstractContextManager[None]]], Any] | None = getattr(
        benchmarking, "set_gpu_benchmark_lock_context", None
    )
    if set_context is not None:
        set_context(lock.held)
        return None
    benchmarker = getattr(benchmarking, "benchmarker", None)
    if benchmarker is None or not hasattr(benchmarker, "benchmark_gpu"):
        return "Inductor's benchmarks could not be told to wait: torch._inductor.runtime.benchmarking has changed"
    benchmarker.benchmark_gpu = partial(_locked, lock, benchmarker.benchmark_gpu)
    return None


def _locked(lock: GpuLock, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    with lock.held():
        return function(*args, **keywords)
