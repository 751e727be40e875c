"""Compiling kernels before they are launched, in processes that need no GPU: Triton finds them in its cache.

One core compiles a kernel in about a second, and a run needs hundreds.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from fused_kernels.aot.compiler import compile_variant
from fused_kernels.aot.targets import TARGETS
from fused_kernels.aot.variant import Variant, variant_of
from fused_kernels.launch import Launch


class Warmer:
    """A pool of compiling processes; groups of launches are compiled in the order in which they are given."""

    def __init__(self, capability: int, jobs: int | None = None) -> None:
        self.target = f"sm_{capability}"
        self.known: dict[Variant, Future[str | None]] = {}
        self.pool: ProcessPoolExecutor | None = None
        if self.target in TARGETS:
            # not forked: torch and MLIR have threads, and the parent has a GPU
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(jobs or os.cpu_count() or 1, mp_context=context)

    def add(self, launches: Iterable[Launch]) -> list[Variant]:
        """Ask for all variants of some launches that nobody has asked for yet; returns what to ``wait`` for."""
        variants = list(dict.fromkeys(variant_of(launch) for launch in launches))
        if self.pool is None:
            return []
        for variant in variants:
            if variant not in self.known:
                try:
                    self.known[variant] = self.pool.submit(_compile, variant, self.target)
                except BrokenProcessPool:  # a compiler has crashed: kernels are compiled when they are launched
                    self.pool = None
                    return []
        return variants

    def wait(self, variants: Iterable[Variant], deadline: float) -> int:
        """Wait for ``variants``, until ``time.monotonic()`` is ``deadline``; returns how many are missing."""
        futures = [self.known[variant] for variant in variants if variant in self.known]
        return len(wait(futures, max(0.0, deadline - time.monotonic())).not_done)

    def failures(self) -> list[str]:
        """What did not compile, and why."""
        found = []
        for variant, future in self.known.items():
            if future.done() and not future.cancelled():
                reason = str(future.exception()) if future.exception() else future.result()
                if reason:
                    found.append(f"{variant.kernel} {variant.warps} warps {variant.stages} stages: {reason}")
        return found

    def cancel(self) -> None:
        """Forget what has not begun."""
        for future in self.known.values():
            future.cancel()
        self.known = {variant: future for variant, future in self.known.items() if not future.cancelled()}

    def stop(self) -> None:
        """End the processes when they have finished what they are at."""
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)


def _compile(variant: Variant, target: str) -> str | None:
    try:
        compile_variant(variant, TARGETS[target])
    except Exception as error:
        # it will fail again, and be reported, where it is launched
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return None
