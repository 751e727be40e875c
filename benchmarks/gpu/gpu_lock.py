"""A lock that lets one process at a time use the GPU, so that no timing is disturbed by another process.

The peers that ``torch.compile`` makes tune themselves by timing while the main process checks results. Both hold this
lock when they time. It is a file's lock, which the system frees when its holder dies.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

FAIRNESS = 0.002
"""Seconds that a holder waits after giving the lock back, or it would take it again before anyone else wakes up."""
LINGER, LONGEST = 0.05, 1.0


class GpuLock:
    """A re-entrant lock between processes; ``path`` is any file that all of them may write.

    Inductor times one candidate after the other, thousands of them. A peer that waited for a whole case before
    each would never be ready, so a peer's lock lingers: it is kept for ``linger`` seconds after its last use, for
    ``longest`` seconds at most.
    """

    def __init__(self, path: Path, *, linger: float = 0.0, longest: float = 0.0) -> None:
        self.path, self.linger, self.longest = path, linger, longest
        self.depth = 0
        self._file: IO[str] | None = None
        self._mutex = threading.Lock()
        self._since = self._last = 0.0
        if linger:
            threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock in this context."""
        with self._mutex:
            if self._file is None:
                file = self.path.open("a")
                fcntl.flock(file, fcntl.LOCK_EX)
                self._file, self._since = file, time.monotonic()
            self.depth += 1
        try:
            yield
        finally:
            with self._mutex:
                self.depth -= 1
                self._last = time.monotonic()
                late = self._last - self._since > self.longest
                released = self.depth == 0 and (late or not self.linger)
                if released:
                    self._release()
            if released:
                time.sleep(FAIRNESS)

    def _release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _watch(self) -> None:
        while True:
            time.sleep(self.linger / 2)
            with self._mutex:
                if self.depth == 0 and time.monotonic() - self._last > self.linger:
                    self._release()


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
