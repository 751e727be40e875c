"""Compiling on every core, in processes: Triton's compiler holds the interpreter lock, and may even crash."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from queue import SimpleQueue

from fused_kernels.aot.compiler import Compiled, compile_all
from fused_kernels.aot.targets import Target
from fused_kernels.aot.variant import Variant

CHUNK = 8
"""Variants that share one run of the disassembler, whose start takes as long as half a compilation."""

Work = Sequence[tuple[Variant, Target]]


def default_jobs() -> int:
    """One process for each core that this one may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compile_in_processes(work: Work, jobs: int) -> Iterator[Compiled]:
    """Compile every variant for its target in ``jobs`` processes; results come in the order in which they finish."""
    chunks = _chunks(work, jobs)
    idle: SimpleQueue[_Worker] = SimpleQueue()
    workers = [_Worker() for _ in range(min(jobs, len(chunks)))]
    for worker in workers:
        idle.put(worker)

    def run(variants: Sequence[Variant], target: Target) -> list[Compiled]:
        worker = idle.get()
        try:
            return worker.run(variants, target)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(max(1, len(workers)))
    try:
        for future in as_completed([threads.submit(run, *chunk) for chunk in chunks]):
            yield from future.result()
    finally:
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.stop()


class _Worker:
    """One process, started anew when the compiler has crashed it."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None

    def run(self, variants: Sequence[Variant], target: Target) -> list[Compiled]:
        if self._pool is None:
            # not forked: torch and MLIR have threads
            self._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        try:
            return self._pool.submit(compile_all, variants, target).result()
        except BrokenProcessPool:
            self.stop()
        if len(variants) == 1:
            return [Compiled(variants[0], target.name, error="the compiler crashed")]
        return [result for variant in variants for result in self.run([variant], target)]

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _chunks(work: Work, jobs: int) -> list[tuple[list[Variant], Target]]:
    """Pieces of at most ``CHUNK`` variants for one target, small enough that every process gets several."""
    by_target: dict[Target, list[Variant]] = {}
    for variant, target in work:
        by_target.setdefault(target, []).append(variant)
    size = max(1, min(CHUNK, len(work) // (4 * jobs)))
    return [
        (variants[start : start + size], target)
        for target, variants in by_target.items()
        for start in range(0, len(variants), size)
    ]
