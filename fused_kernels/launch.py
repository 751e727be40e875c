"""A kernel launch as data: the kernel, its arguments, and which of them it writes.

Every operation of this package is a handful of ``launch`` calls. A launch runs on a GPU or under Triton's interpreter.
On meta or fake tensors it is only recorded. So one code path gives the results, the shapes that ``torch.compile`` asks
for, the bytes that a network moves, the list of kernels to compile ahead of time and, in tests, a NaN in every output
that a kernel forgets to write.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fused_kernels.errors import MissingPackage
from fused_kernels.tiles import Tile


@dataclass(frozen=True)
class Out:
    """Marks a tensor that the kernel writes; every other tensor is read."""

    tensor: Tensor


@dataclass(frozen=True)
class Functor:
    """A ``triton.jit`` function given to a kernel at compile time: ``module.function`` of ``fused_kernels.kernels``."""

    name: str


@dataclass(frozen=True)
class Launch:
    """One kernel launch; ``arguments`` by name, with ``Out`` and ``Functor`` markers still in place."""

    kernel: str
    """``module.function`` of ``fused_kernels.kernels``."""
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    tile: Tile

    def tensors(self) -> Iterator[tuple[Tensor, bool]]:
        """Every tensor argument, with whether it is written."""
        for value in self.arguments.values():
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, Out):
                    yield item.tensor, True
                elif isinstance(item, Tensor):
                    yield item, False

    @property
    def fp_fusion(self) -> bool:
        """Whether a multiplication and an addition may become one instruction, which rounds once.

        It may not in int8: requantized values must equal the reference's, and near a tie the second rounding shows.
        """
        return not any(tensor.dtype == torch.int8 for tensor, _ in self.tensors())


Listener = Callable[[Launch], None]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("launch listeners", default=())
_forced: ContextVar[str | None] = ContextVar("implementation", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call ``listener`` with every launch in this context, before it runs."""
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect every launch made in this context."""
    launches: list[Launch] = []
    with listening(launches.append):
        yield launches


def launch(kernel: str, grid: tuple[int, ...], tile: Tile, **arguments: Any) -> None:
    """Run ``kernel`` over ``grid`` with keyword ``arguments``, or only record it where the tensors have no storage."""
    described = Launch(kernel, grid, arguments, tile)
    for listener in _listeners.get():
        listener(described)
    if any(is_abstract(tensor) for tensor, _ in described.tensors()) or 0 in grid:
        return
    resolved = {name: _resolve(value) for name, value in arguments.items()}
    kernel_function(kernel)[grid](**resolved, **tile.options, enable_fp_fusion=described.fp_fusion)


def is_abstract(tensor: Tensor) -> bool:
    """Whether a tensor has a shape but no values: on the meta device, or fake under ``torch.compile``."""
    return tensor.is_meta or isinstance(tensor, FakeTensor)


def _resolve(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_resolve(item) for item in value)
    if isinstance(value, Out):
        return value.tensor
    if isinstance(value, Functor):
        return kernel_function(value.name)
    return value


@cache
def kernel_function(name: str) -> Any:
    """The ``triton.jit`` function ``module.function`` of ``fused_kernels.kernels``.

    Raises:
        MissingPackage: Triton is not installed.
    """
    module, function = name.split(".")
    try:
        return getattr(importlib.import_module(f"fused_kernels.kernels.{module}"), function)
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise MissingPackage("the fused kernels need Triton: pip install 'rescompile[triton]'") from None


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels (``TRITON_INTERPRET=1``), on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "yes", "on", "y"}


@contextmanager
def implementation(name: str) -> Iterator[None]:
    """Force ``"kernels"`` or ``"reference"`` in this context, whatever the device."""
    if name not in {"kernels", "reference"}:
        raise ValueError(f"unknown implementation {name!r}: choose 'kernels' or 'reference'")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def trains_plainly(device: torch.device) -> bool:
    """Whether modules under autograd compute as plain PyTorch on ``device``: a CPU, where no kernel could run.

    The ``references`` keep what the kernels would, which makes them slower there.
    """
    return device.type == "cpu" and not _chosen_on_cpus()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _chosen_on_cpus() -> bool:
    """Whether an implementation is forced, or the interpreter runs; ``torch.compile`` cannot look into this."""
    return _forced.get() is not None or interpreted()


def uses_kernels(tensor: Tensor) -> bool:
    """Whether kernels compute on ``tensor``; plain PyTorch does where they cannot run.

    An operation asks this about its activation, or about a parameter if it has none. ``references`` compute float64,
    unless kernels are forced.
    """
    return (tensor.dtype != torch.float64 or _forced.get() is not None) and kernels_run_on(tensor.device)


def kernels_run_on(device: torch.device) -> bool:
    """Whether kernels run, or are recorded, on ``device``: a GPU, meta, or a CPU under the interpreter.

    On the meta device they are recorded. ``implementation`` overrides all of this.
    """
    if forced := _forced.get():
        return forced == "kernels"
    return device.type in {"cuda", "meta"} or interpreted()
