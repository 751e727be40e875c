"""Timing contenders in turns, on a GPU or by the host's clock, until their medians are stable."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Protocol

import torch

from fused_kernels.tune.timing import Replay

UNSTABLE = 0.05
"""A middle 80 % wider than this share of the median asks for more rounds, and is reported."""


class Contender(Protocol):
    """Anything that can be timed."""

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


def contender(step: Callable[[], Any], device: torch.device, *, flush: bool = False) -> Contender:
    """``step`` made ready for timing on ``device``."""
    if device.type == "cuda":
        return Replay(step, flush=flush)
    step()
    return Call(step, device)


def one_round(contenders: Mapping[str, Contender], each: int = 1) -> dict[str, list[float]]:
    """Milliseconds of ``each`` runs of every contender, one contender after the other."""
    return {name: one.times(each) for name, one in contenders.items()}


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
    one_round(contenders)  # the first replay uploads the graph
    for done in range(1, 2 * rounds + 1):
        for name, found in one_round(contenders, each).items():
            times[name] += found
        late = time.perf_counter() - started > seconds
        stable = all(summary(all_times).spread <= UNSTABLE for all_times in times.values())
        if (late and done >= 3) or (done >= rounds and stable):
            break
    return {name: summary(all_times) for name, all_times in times.items()}


def summary(times: Sequence[float]) -> Measured:
    """Median, minimum and percentiles of at least one time."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return Measured(
        median(ordered), ordered[0], ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered)
    )


def notes_of(measured: Mapping[str, Measured], contenders: Mapping[str, Contender]) -> list[str]:
    """Notes that a reader of these figures needs."""
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
    """Most bytes allocated during ``step``, including what was allocated before; None on a CPU."""
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
