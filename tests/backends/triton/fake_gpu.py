"""pycuda and the CUDA driver on the host: memory in torch tensors, kernels in Triton's interpreter, graphs as lists."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fused_kernels.launch import kernel_function
from rescompile.backends.triton.plan import Constant, Function, Kernel, Parameter, Plan
from tests.backends.triton.planned import SCRATCH

TYPES = {"*i8": torch.int8, "*u8": torch.uint8, "*fp16": torch.float16, "*fp32": torch.float32}
POISON = 0x5A
"""What memory holds before it is written."""


class Error(Exception):
    """What pycuda's errors derive from."""


@dataclass
class Memory:
    """One allocation, at an address of its own."""

    gpu: FakeGpu
    address: int
    content: torch.Tensor

    def __int__(self) -> int:
        return self.address

    def free(self) -> None:
        self.gpu.require_current()
        self.gpu.memory.remove(self)


@dataclass
class FunctionHandle:
    """One function of a module."""

    gpu: FakeGpu
    kernel: Kernel
    format: str = ""
    attributes: dict[str, int] = field(default_factory=dict)

    def set_attribute(self, attribute: str, value: int) -> None:
        self.attributes[attribute] = value

    def prepare(self, form: str) -> None:
        self.format = form

    def prepared_async_call(
        self, grid: tuple[int, ...], block: tuple[int, ...], stream: Any, *arguments: Any, shared_size: int
    ) -> None:
        assert len(self.format) == len(arguments)
        assert block == (self.kernel.threads, 1, 1)
        assert shared_size <= max(48 << 10, self.attributes.get("MAX_DYNAMIC_SHARED_SIZE_BYTES", 0))
        assert arguments[len(arguments) - SCRATCH :] == (0,) * SCRATCH
        self.gpu.put(lambda: self.gpu.compute(self.kernel, grid, arguments))


class FakeGpu:
    """``pycuda.driver``, and ``library`` of the driver's own functions for graphs."""

    Error = Error
    function_attribute = SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES="MAX_DYNAMIC_SHARED_SIZE_BYTES")

    def __init__(self, plan: Plan, *, room: int = 1 << 30, computes: bool = True) -> None:
        self.plan, self.room, self.computes = plan, room, computes
        self.memory: list[Memory] = []
        self.depth, self.detached = 0, False
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.captured: list[Callable[[], None]] | None = None
        self.launched: list[int] = []
        self.eager = 0
        self.loaded: list[bytes] = []
        self.failing: dict[str, int] = {}
        self.Context = SimpleNamespace(pop=self.pop)
        self.library: Any = self

    def init(self) -> None: ...

    def Device(self, index: int) -> Any:  # noqa: N802 - the library's own name
        return SimpleNamespace(retain_primary_context=lambda: self)

    def Stream(self) -> Any:  # noqa: N802
        return SimpleNamespace(handle=7, synchronize=self.require_current)

    def push(self) -> None:
        self.depth += 1

    def pop(self) -> None:
        self.depth -= 1

    def detach(self) -> None:
        self.detached = True

    def require_current(self) -> None:
        assert self.depth == 1

    def mem_alloc(self, size: int) -> Memory:
        self.require_current()
        if size > self.room:
            raise Error("out of memory")
        self.room -= size
        address = (
            1 << 20 if not self.memory else self.memory[-1].address + len(self.memory[-1].content) + 4096
        )
        made = Memory(self, -(-address // 256) * 256, torch.full((size,), POISON, dtype=torch.uint8))
        self.memory.append(made)
        return made

    def memset_d8(self, memory: Memory, value: int, size: int) -> None:
        memory.content[:size] = value

    def memcpy_htod(self, memory: Memory, array: NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        memory.content[: array.nbytes] = torch.from_numpy(array.reshape(-1).view(np.uint8).copy())

    def memcpy_htod_async(self, memory: Memory, array: NDArray[Any], stream: Any) -> None:
        self.memcpy_htod(memory, array)

    def memcpy_dtoh_async(self, array: NDArray[Any], memory: Memory, stream: Any) -> None:
        array[...] = memory.content[: array.nbytes].numpy().view(array.dtype).reshape(array.shape)

    def module_from_buffer(self, code: bytes) -> Any:
        self.require_current()
        if code == b"garbage":
            raise Error("device kernel image is invalid")
        self.loaded.append(code)
        return SimpleNamespace(get_function=lambda entry: self._function(code, entry))

    def _function(self, code: bytes, entry: str) -> FunctionHandle:
        digest = hashlib.sha256(code).hexdigest()[:12]
        kernel = next(k for k in self.plan.kernels if k.entry == entry and digest in k.file)
        return FunctionHandle(self, kernel)

    def put(self, work: Callable[[], None]) -> None:
        """Into the graph that is being captured; outside of one it is counted alone, for it takes long here."""
        if self.captured is None:
            self.eager += 1
        else:
            self.captured.append(work)

    def compute(self, kernel: Kernel, grid: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        values = [self._value(kind, value) for kind, value in zip(kernel.parameters, arguments, strict=False)]

        def resolved(source: Parameter | Constant | Function) -> Any:
            if isinstance(source, Parameter):
                return values[source.index]
            return kernel_function(source.name) if isinstance(source, Function) else source.value

        named = {
            name: resolved(source)
            if isinstance(source, Parameter | Constant | Function)
            else tuple(resolved(item) for item in source.items)
            for name, source in kernel.source.items()
        }
        kernel_function(kernel.function)[grid](**named)

    def _value(self, kind: str, value: Any) -> Any:
        if kind not in TYPES:
            return value
        for memory in self.memory:
            begin = value - memory.address
            if 0 <= begin < len(memory.content):
                whole = (len(memory.content) - begin) // 4 * 4
                return memory.content[begin : begin + whole].view(TYPES[kind])
        raise AssertionError(f"{value} is no address of this GPU")

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:  # noqa: N802
        assert stream.value == 7
        self.captured = []
        return self.failing.get("begin", 0)

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:  # noqa: N802
        assert self.captured is not None
        graph._obj.value = len(self.graphs) + 100
        self.graphs[graph._obj.value], self.captured = self.captured, None
        return self.failing.get("end", 0)

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:  # noqa: N802
        executable._obj.value = graph.value + 1000
        return self.failing.get("instantiate", 0)

    def cuGraphLaunch(self, executable: ctypes.c_void_p, stream: Any) -> int:  # noqa: N802
        self.require_current()
        assert executable.value is not None
        self.launched.append(executable.value)
        for work in self.graphs[executable.value - 1000] if self.computes else ():
            work()
        return self.failing.get("launch", 0)

    def cuGraphExecDestroy(self, executable: ctypes.c_void_p) -> int:  # noqa: N802
        return 0

    def cuGraphDestroy(self, graph: ctypes.c_void_p) -> int:  # noqa: N802
        assert graph.value is not None
        del self.graphs[graph.value]
        return 0
