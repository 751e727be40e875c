"""Time on a GPU: CUDA graphs in interleaved rounds, so that a drifting clock meets all alike; medians."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

ROUNDS = 15
WARM_UP = 2
FLUSHED_BYTES = 256 * 2**20
"""Several times any GPU's L2 cache: a network finds its operands in memory, not there."""

Timer = Callable[[Sequence[Callable[[], None]]], list[float]]
"""Milliseconds for each of some functions."""


def on_gpu(functions: Sequence[Callable[[], None]]) -> list[float]:
    """The median milliseconds of each function, which must not wait for the device."""
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device="cuda")
    pool = torch.cuda.graph_pool_handle()
    graphs = [_captured(function, pool) for function in functions]
    times: list[list[float]] = [[] for _ in functions]
    order = list(range(len(functions)))
    shuffle = random.Random(0).shuffle
    for _ in range(ROUNDS):
        shuffle(order)
        events = {}
        for index in order:
            flushed.zero_()
            events[index] = start, end = _event(), _event()
            start.record()
            graphs[index].replay()
            end.record()
        torch.cuda.synchronize()
        for index, (start, end) in events.items():
            times[index].append(start.elapsed_time(end))
    return [median(found) for found in times]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _captured(function: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # the graphs never run at the same time, and nobody reads their results: they may share their memory
    with torch.cuda.graph(graph, pool=pool):
        function()
    return graph
