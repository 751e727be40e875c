"""Times on a GPU as medians over interleaved rounds, A B C, A B C, …, so that a drifting clock affects all alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import median
from typing import Any, Protocol

import torch

ROUNDS = 15
"""Rounds of the tuner."""
UNSTABLE = 0.05
"""A middle 80 % wider than this share of the median asks for more rounds."""
FLUSH_BYTES = 256 * 2**20
"""Several times the L2 cache of any GPU: a network finds its operands in memory, not there."""

Timer = Callable[[Sequence[Callable[[], None]]], list[float]]
"""Milliseconds for each of some functions."""


class Contender(Protocol):
    """Anything that can be timed."""

    notes: list[str]

    def times(self, count: int) -> list[float]:
        """Milliseconds of ``count`` runs."""


@dataclass(frozen=True)
class Measured:
    """Milliseconds of one contender."""

    median: float
    min: float
    p10: float
    p90: float
    rounds: int

    @property
    def spread(self) -> float:
        """Width of the middle 80 %, as a share of the median."""
        return (self.p90 - self.p10) / self.median if self.median else 0.0

    def to_json(self) -> dict[str, float]:
        """A plain dictionary."""
        return asdict(self)


class Replay:
    """A step timed between events on the device: a CUDA graph, or single launches if the step cannot be captured."""

    def __init__(
        self,
        step: Callable[[], Any],
        *,
        warmup: int = 2,
        flush: bool = False,
        stream: torch.cuda.Stream | None = None,
        pool: Any = None,
    ) -> None:
        """Run ``step`` ``warmup`` times and capture it.

        Args:
            step: must not wait for the device.
            warmup: runs before the capture.
            flush: overwrite the L2 cache before each timed run.
            stream: where to run, its own by default.
            pool: memory that graphs share; they must share ``stream`` too and never run at the same time.
        """
        self.notes: list[str] = []
        self.buffer = _flush_buffer() if flush else None
        self.stream = stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.step = step
        self._on_stream(lambda: [step() for _ in range(warmup)])
        if not flush:
            torch.cuda.empty_cache()  # a whole network's step leaves gigabytes that its graph cannot use
        try:
            self._on_stream(lambda: self._capture(pool))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.graph = None
            self.notes.append(f"not in a CUDA graph: {first_line(error)}")

    def _on_stream(self, function: Callable[[], Any]) -> None:
        torch.cuda.synchronize()
        with torch.cuda.stream(self.stream):
            function()
        torch.cuda.synchronize()

    def _capture(self, pool: Any) -> None:
        graph = torch.cuda.CUDAGraph()
        gc.disable()  # a collected event or graph would be destroyed in the middle of the capture
        try:
            graph.capture_begin(pool=pool)
            try:
                self.step()
            finally:
                graph.capture_end()
        finally:
            gc.enable()
        self.graph = graph

    def run(self) -> None:
        """One run, without waiting for it."""
        if self.graph is None:
            self.step()
        else:
            self.graph.replay()

    def times(self, count: int) -> list[float]:
        """Milliseconds of ``count`` runs, between events on one stream."""
        pairs = []
        with torch.cuda.stream(self.stream):
            for _ in range(count):
                if self.buffer is not None:
                    self.buffer.zero_()
                start, end = _event(), _event()
                start.record()
                self.run()
                end.record()
                pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]


def race(
    contenders: Mapping[str, Contender], *, seconds: float, rounds: int = 10, each: int = 1
) -> dict[str, Measured]:
    """Time all contenders in turns, ``each`` runs at a time.

    Args:
        contenders: what to time, by name.
        seconds: stop after this long, but not before three rounds.
        rounds: if one is unstable after these, all get as many again.
        each: runs of one contender in a round.
    """
    started = time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for one in contenders.values():
        one.times(1)  # the first replay uploads the graph
    for done in range(1, 2 * rounds + 1):
        for name, one in contenders.items():
            times[name] += one.times(each)
        late = time.perf_counter() - started > seconds
        stable = all(summary(found).spread <= UNSTABLE for found in times.values())
        if (late and done >= 3) or (done >= rounds and stable):
            break
    return {name: summary(found) for name, found in times.items()}


def on_gpu(functions: Sequence[Callable[[], None]]) -> list[float]:
    """The tuner's timer: median milliseconds of each function, with an L2 cache that holds none of its operands."""
    # nothing reads the graphs' results, so they may share their memory
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
    replays = {
        str(index): Replay(step, flush=True, stream=stream, pool=pool) for index, step in enumerate(functions)
    }
    return [found.median for found in race(replays, seconds=math.inf, rounds=ROUNDS).values()]


def summary(times: Sequence[float]) -> Measured:
    """Median, minimum and percentiles of at least one time."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return Measured(
        median(ordered), ordered[0], ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered)
    )


def first_line(error: BaseException) -> str:
    """The class and the first line of the message of an error."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
