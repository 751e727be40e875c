"""Timing on any device: ``fused_kernels.tune.timing`` on a GPU, the host's clock elsewhere; and notes for readers."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fused_kernels.tune.timing import UNSTABLE, Contender, Measured, Replay


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
