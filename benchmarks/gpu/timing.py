"""Time as medians over interleaved rounds: A B C, A B C, …, so that a drifting clock meets all of them alike.

On a GPU every contender is a CUDA graph wherever it can be captured, timed by events around its replay, with the L2
cache flushed before it where asked. Elsewhere it is a call, timed by the host's clock.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import Any, Protocol

import torch

UNSTABLE = 0.05
"""A middle 80 % wider than this share of the median is reported."""
FLUSH_BYTES = 256 * 2**20
"""Several times the L2 cache of any GPU that there is."""


class Contender(Protocol):
    """What can be timed."""

    notes: list[str]

    def times(self, count: int) -> list[float]:
        """Milliseconds of ``count`` runs."""


@dataclass
class Call:
    """A function on the host's clock; ``synchronize`` waits for the device."""

    step: Callable[[], Any]
    device: torch.device
    notes: list[str] = field(default_factory=list)

    def times(self, count: int) -> list[float]:
        """Milliseconds of ``count`` runs."""
        found = []
        for _ in range(count):
            synchronize(self.device)
            start = time.perf_counter()
            self.step()
            synchronize(self.device)
            found.append(1e3 * (time.perf_counter() - start))
        return found


class Replay:
    """A step on the device's clock, from a CUDA graph, or launched one kernel at a time where it cannot be captured."""

    def __init__(self, step: Callable[[], Any], *, warmup: int = 2, flush: bool = False) -> None:
        self.notes: list[str] = []
        self.buffer = _flush_buffer() if flush else None
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.step = step
        self._on_stream(lambda: [step() for _ in range(warmup)])
        if not flush:
            torch.cuda.empty_cache()  # a whole network's step leaves gigabytes that its graph cannot use
        try:
            self._on_stream(self._capture)
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

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        gc.disable()  # a collected event or graph would be destroyed in the middle of the capture
        try:
            graph.capture_begin()
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


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")


def contender(step: Callable[[], Any], device: torch.device, *, flush: bool = False) -> Contender:
    """``step`` made ready for timing on ``device``."""
    if device.type == "cuda":
        return Replay(step, flush=flush)
    step()
    return Call(step, device)


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
        return {
            "median": self.median,
            "min": self.min,
            "p10": self.p10,
            "p90": self.p90,
            "rounds": self.rounds,
        }


def summary(times: list[float]) -> Measured:
    """Median, minimum and percentiles of at least one time."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return Measured(
        median(ordered), ordered[0], ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered)
    )


def race(
    contenders: Mapping[str, Contender], *, seconds: float, rounds: int = 10, each: int = 1
) -> dict[str, Measured]:
    """Time all contenders in turns, ``each`` runs at a time.

    Args:
        contenders: what to time, by name.
        seconds: stop after this long, but not before three rounds.
        rounds: where one is unstable after these, all get as many again.
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


def notes_of(measured: Mapping[str, Measured], contenders: Mapping[str, Contender]) -> list[str]:
    """What a reader must know about these figures."""
    notes = [f"{name}: {note}" for name, one in contenders.items() for note in one.notes]
    for name, result in measured.items():
        if result.spread > UNSTABLE:
            notes.append(
                f"{name} may be unstable because the middle 80 % of {result.rounds} runs spread over"
                f" {100 * result.spread:.0f} % of the median: run it again on an idle machine"
            )
    return notes


def synchronize(device: torch.device) -> None:
    """Wait for everything that was asked of ``device``."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(step: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes allocated at the worst moment of ``step``, what it starts from included; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated())


def free(device: torch.device) -> None:
    """Give back what dead tensors and graphs hold."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def first_line(error: BaseException) -> str:
    """The class and the first line of a message, for a note."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
