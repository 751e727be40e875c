"""Times on a GPU in interleaved rounds, A B C, A B C, …, so that a drifting clock affects all alike."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache
from statistics import median
from typing import Any

import torch

ROUNDS = 15
"""Rounds of the tuner."""
FLUSH_BYTES = 256 * 2**20
"""Several times the L2 cache of any GPU: a network finds its operands in memory, not there."""

Timer = Callable[[Sequence[Callable[[], None]]], list[float]]
"""Milliseconds for each of some functions."""


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
        """Run ``step``, which must not wait for the device, ``warmup`` times and capture it.

        ``flush`` overwrites the L2 cache before each timed run. Graphs may share a memory ``pool`` if they share their
        ``stream`` too and never run at the same time.
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

    def times(self, count: int) -> list[float]:
        """Milliseconds of ``count`` runs, between events on one stream."""
        pairs = []
        run = self.step if self.graph is None else self.graph.replay
        with torch.cuda.stream(self.stream):
            for _ in range(count):
                if self.buffer is not None:
                    self.buffer.zero_()
                start, end = _event(), _event()
                start.record()
                run()
                end.record()
                pairs.append((start, end))
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in pairs]


def on_gpu(functions: Sequence[Callable[[], None]]) -> list[float]:
    """Median milliseconds of each function, with an L2 cache that holds none of its operands."""
    # nothing reads the graphs' results, so they may share their memory
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
    replays = [Replay(step, flush=True, stream=stream, pool=pool) for step in functions]
    # the first round is not counted: it uploads the graphs
    rounds = [[replay.times(1)[0] for replay in replays] for _ in range(1 + ROUNDS)]
    return [median(times) for times in zip(*rounds[1:], strict=True)]


def first_line(error: BaseException) -> str:
    """The class and the first line of the message of an error."""
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@cache
def _flush_buffer() -> torch.Tensor:
    return torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
