"""A memory checker for Triton's interpreter: accesses that would be out of bounds on a GPU fail on a CPU.

While a kernel runs, every address that it reads must lie in one of its tensors, every address that it writes in one
that its launch marks as ``Out``, and no two programs may write the same one. One program may write an address again
after it has read it back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fused_kernels.launch import Launch, is_abstract, listening

Addresses = NDArray[np.uint64]
Ranges = list[tuple[int, int]]


class Sanitizer:
    """Checked access to the interpreter's own ``memory``."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory
        self.launch: Launch | None = None
        self.readable: Ranges = []
        self.writable: Ranges = []
        self.stores: dict[Any, list[Addresses]] = {}
        self.unread = np.empty(0, np.uint64)
        self.twice = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.memory, name)

    def announced(self, launch: Launch) -> None:
        """Remember a launch until its kernel runs, unless it is only recorded."""
        self.launch = None if any(is_abstract(tensor) for tensor, _ in launch.tensors()) else launch

    @contextmanager
    def running(self, values: list[Any]) -> Iterator[None]:
        """Watch one kernel with these arguments."""
        tensors = list(tensors_of(values))
        written = [t for t, out in self.launch.tensors() if out] if self.launch is not None else tensors
        self.readable, self.writable, self.stores = ranges(tensors), ranges(written), {}
        self.twice = 0
        try:
            yield
            own = [np.unique(np.concatenate(stores)) for stores in self.stores.values()]
            addresses = np.concatenate(own) if own else np.empty(0, np.uint64)
            twice = self.twice + addresses.size - np.unique(addresses).size
            assert twice == 0, f"{self.name} writes {twice} elements twice"
        finally:
            self.launch = None

    @property
    def name(self) -> str:
        return "a kernel" if self.launch is None else self.launch.kernel

    def program(self) -> Any:
        """The program that is running."""
        from triton.runtime.interpreter import interpreter_builder

        return interpreter_builder.grid_idx

    def load(self, pointers: Addresses, mask: NDArray[np.bool_], other: Any, dtype: Any) -> Any:
        """Read where ``mask`` is true."""
        at = pointers[mask.astype(bool)]
        self.check(at, self.readable, "reads")
        if self.unread.size:
            self.unread = np.setdiff1d(self.unread, at)
        return self.memory.load(pointers, mask, other, dtype)

    def store(self, pointers: Addresses, value: Any, mask: NDArray[np.bool_]) -> Any:
        """Write where ``mask`` is true."""
        at = pointers[mask.astype(bool)]
        self.check(at, self.writable, "writes")
        program = self.program()
        if program not in self.stores:
            self.stores[program], self.unread = [], np.empty(0, np.uint64)
        fresh = np.unique(at)
        self.twice += at.size - fresh.size + int(np.isin(fresh, self.unread).sum())
        self.unread = np.union1d(self.unread, fresh)
        self.stores[program].append(fresh)
        return self.memory.store(pointers, value, mask)

    def check(self, at: Addresses, allowed: Ranges, does: str) -> None:
        inside = np.zeros(at.shape, dtype=bool)
        for start, end in allowed:
            inside |= (at >= start) & (at < end)
        assert inside.all(), f"{self.name} {does} {(~inside).sum()} elements outside of its tensors"


def ranges(tensors: list[Tensor]) -> Ranges:
    """First and last address of each tensor."""
    return [(t.data_ptr(), t.data_ptr() + extent(t) * t.element_size()) for t in tensors if t.numel()]


def extent(tensor: Tensor) -> int:
    """Elements from the first to the last, with the gaps between them."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def tensors_of(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments and tuples of arguments."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from tensors_of(value)


@contextmanager
def sanitized() -> Iterator[None]:
    """Check every access of every kernel that the interpreter runs in this context."""
    from triton.runtime import interpreter

    sanitizer = Sanitizer(interpreter._interpreter)
    run = interpreter.GridExecutor.__call__

    def watched(executor: Any, *arguments: Any, **named: Any) -> None:
        with sanitizer.running([*arguments, *named.values()]):
            run(executor, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch, listening(sanitizer.announced):
        patch.setattr(interpreter, "_interpreter", sanitizer)
        patch.setattr(interpreter.GridExecutor, "__call__", watched)
        yield
