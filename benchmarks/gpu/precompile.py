"""Compiling kernels before they are launched, in processes that need no GPU: Triton then finds them in its cache.

One core compiles a kernel in one to three seconds, and a run needs hundreds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future, wait

from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.pool import CompilePool
from fused_kernels.compiling.variant import Variant, variant_of
from fused_kernels.launch import Launch

NICENESS = 5
"""The compiling processes give way to those whose time is measured."""


class Precompiler:
    """Compiles groups of launches in the order in which they are given, each variant once."""

    def __init__(self, capability: int | None, jobs: int | None = None) -> None:
        """Compile for GPUs of ``capability`` (90 is 9.0); with None compile nothing."""
        self.known: dict[Variant, Future[Code]] = {}
        self.capability = capability
        self.pool = CompilePool(jobs, niceness=NICENESS)

    def add(self, launches: Iterable[Launch]) -> list[Variant]:
        """Ask for the variants of some launches; returns what to ``wait`` for."""
        if self.capability is None:
            return []
        variants = list(dict.fromkeys(map(variant_of, launches)))
        for variant in variants:
            if variant not in self.known:
                self.known[variant] = self.pool.submit(variant, self.capability)
        return variants

    def wait(self, variants: Iterable[Variant], deadline: float) -> int:
        """Wait for ``variants`` until ``time.monotonic()`` is ``deadline``; returns how many are missing."""
        futures = [self.known[variant] for variant in variants if variant in self.known]
        return len(wait(futures, max(0.0, deadline - time.monotonic())).not_done)

    def failures(self) -> list[str]:
        """The variants that did not compile, with the reason; they fail again where they are launched."""
        return [
            f"{variant.kernel} {dict(variant.options)}: {future.result().error}"
            for variant, future in self.known.items()
            if future.done() and not future.cancelled() and future.result().error
        ]

    def cancel(self) -> None:
        """Forget what has not begun."""
        for future in self.known.values():
            future.cancel()
        self.known = {variant: future for variant, future in self.known.items() if not future.cancelled()}

    def stop(self) -> None:
        """End the processes."""
        self.pool.stop()
