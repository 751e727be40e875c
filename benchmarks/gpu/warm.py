"""Compiling kernels before they are launched, in processes that need no GPU: Triton finds them in its cache.

One core compiles a kernel in one to three seconds, and a run needs hundreds. The processes go through Triton's own
just-in-time path, told that the current GPU is of the wanted kind, because the names in the cache depend on it.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fused_kernels.aot.variant import Variant, aligned, variant_of
from fused_kernels.launch import Functor, Launch, Out, kernel_function


@dataclass(frozen=True)
class Stand:
    """What a compiler must know of a tensor."""

    dtype: torch.dtype
    aligned: bool

    def tensor(self) -> Tensor:
        """A small tensor of this dtype, at an address that divides by 16 or does not."""
        return torch.empty(64, dtype=self.dtype)[0 if self.aligned else 1 :]


@dataclass(frozen=True)
class Recipe:
    """A launch that can go to another process: ``arguments`` with tensors as ``Stand``."""

    kernel: str
    grid: tuple[int, ...]
    options: dict[str, Any]
    """What the compiler is told beside them, as ``launch`` tells it."""
    arguments: dict[str, Any]


def recipe_of(launch: Launch) -> Recipe:
    """``launch`` without its tensors."""
    arguments = {name: _portable(value) for name, value in launch.arguments.items()}
    options = {
        "num_warps": launch.tile.warps,
        "num_stages": launch.tile.stages,
        "enable_fp_fusion": launch.fp_fusion,
    }
    return Recipe(launch.kernel, launch.grid, options, arguments)


def _portable(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_portable(item) for item in value)
    if isinstance(value, Out):
        value = value.tensor
    return Stand(value.dtype, aligned(value)) if isinstance(value, Tensor) else value


def _usable(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_usable(item) for item in value)
    if isinstance(value, Functor):
        return kernel_function(value.name)
    return value.tensor() if isinstance(value, Stand) else value


class Warmer:
    """A pool of compiling processes; groups of launches are compiled in the order in which they are given."""

    def __init__(self, capability: int | None, jobs: int | None = None) -> None:
        """For GPUs of ``capability`` (90 is 9.0); None compiles nothing."""
        self.known: dict[Variant, Future[str | None]] = {}
        self.pool: ProcessPoolExecutor | None = None
        if capability is not None:
            self.pool = ProcessPoolExecutor(
                jobs or os.cpu_count() or 1,
                # not forked: torch and MLIR have threads, and the parent has a GPU
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(capability,),
            )

    def add(self, launches: Iterable[Launch]) -> list[Variant]:
        """Ask for all variants of some launches that nobody has asked for yet; returns what to ``wait`` for."""
        if self.pool is None:
            return []
        variants = {variant_of(launch): launch for launch in launches}
        for variant, launch in variants.items():
            if variant not in self.known:
                try:
                    self.known[variant] = self.pool.submit(_compile, recipe_of(launch))
                except BrokenProcessPool:
                    # a compiler has crashed: from here on kernels are compiled when they are launched
                    self.pool = None
                    return []
        return list(variants)

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


class _Pretended:
    """As much of Triton's driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _pretend(capability: int) -> None:
    from triton.runtime import driver

    torch.set_num_threads(1)
    driver.set_active(_Pretended(capability))


def _begin(capability: int) -> None:
    """A worker's start: it gives way to the processes whose time is scarcer."""
    os.nice(5)
    _pretend(capability)


def _compile(recipe: Recipe) -> str | None:
    try:
        kernel_function(recipe.kernel).warmup(
            grid=recipe.grid,
            **recipe.options,
            **{name: _usable(value) for name, value in recipe.arguments.items()},
        )
    except Exception as error:
        # it will fail again, and be reported, where it is launched
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else ''}"
    return None
