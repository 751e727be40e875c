"""The fake GPU with kernels, which Triton's interpreter executes, and graphs, which are lists of work."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch

from rescompile.backends.triton.plan import Kernel, Plan
from tests.backends.cuda.fake_cuda import Error, FakeCuda, Stream, status_of
from tests.backends.triton.interpreter import TYPES
from tests.backends.triton.kernel_sources import kernel_sources
from tests.backends.triton.planned import SCRATCH

C_TYPES: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
"""Types of numbers in a kernel's parameters; every address is 64 bits."""


def fields_end(layout: Any) -> int:
    """Bytes of a structure up to the end of its last field."""
    last = getattr(layout, layout._fields_[-1][0])
    return int(last.offset + last.size)


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
        self, grid: tuple[int, ...], block: tuple[int, ...], stream: Stream, *arguments: Any, shared_size: int
    ) -> None:
        self.gpu.require_current()
        self.gpu.may_fail("LaunchKernel")
        assert len(self.format) == len(arguments)
        assert block == (self.kernel.threads, 1, 1)
        assert shared_size <= max(48 << 10, self.attributes.get("MAX_DYNAMIC_SHARED_SIZE_BYTES", 0))
        assert arguments[len(arguments) - SCRATCH :] == (0,) * SCRATCH
        self.gpu.put(stream, self.kernel, grid, arguments)


class FakeGpu(FakeCuda):
    """The fake GPU for the launches of ``plan``."""

    function_attribute = SimpleNamespace(MAX_DYNAMIC_SHARED_SIZE_BYTES="MAX_DYNAMIC_SHARED_SIZE_BYTES")

    def __init__(self, plan: Plan, *, room: int = 1 << 30, computes: bool = True) -> None:
        super().__init__(room=room)
        self.plan, self.computes = plan, computes
        self._sources = kernel_sources(plan)
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launched: list[int] = []
        self.eager = 0
        self.loaded: list[bytes] = []
        self.modules: dict[int, Any] = {}
        self.functions: dict[int, FunctionHandle] = {}

    def module_from_buffer(self, code: bytes) -> Any:
        self.require_current()
        if code == b"garbage":
            raise Error("device kernel image is invalid", 200)
        self.loaded.append(code)
        return SimpleNamespace(get_function=lambda entry: self._function(code, entry))

    def _function(self, code: bytes, entry: str) -> FunctionHandle:
        digest = hashlib.sha256(code).hexdigest()[:12]
        kernel = next(k for k in self.plan.kernels if k.entry == entry and digest in k.file)
        return FunctionHandle(self, kernel)

    # the library's functions that do what pycuda's do

    @status_of
    def cuModuleLoadData(self, module: Any, code: bytes) -> None:  # noqa: N802
        made = self.module_from_buffer(code)
        module._obj.value = next(self._handles)
        self.modules[module._obj.value] = made

    def cuModuleUnload(self, module: ctypes.c_void_p) -> int:  # noqa: N802
        del self.modules[module.value or 0]
        return 0

    def cuModuleGetFunction(self, function: Any, module: ctypes.c_void_p, name: bytes) -> int:  # noqa: N802
        function._obj.value = next(self._handles)
        self.functions[function._obj.value] = self.modules[module.value or 0].get_function(name.decode())
        return 0

    def cuFuncSetAttribute(self, function: ctypes.c_void_p, attribute: int, value: int) -> int:  # noqa: N802
        assert attribute == 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self.functions[function.value or 0].set_attribute("MAX_DYNAMIC_SHARED_SIZE_BYTES", value)
        return 0

    @status_of
    def cuLaunchKernel(self, function: ctypes.c_void_p, *rest: Any) -> None:  # noqa: N802
        *shape, shared_size, stream, parameters, extra = rest
        assert (parameters, extra[0], extra[2], extra[4]) == (None, 1, 2, None)
        handle = self.functions[function.value or 0]
        size = ctypes.cast(extra[3], ctypes.POINTER(ctypes.c_size_t)).contents.value
        kinds = [*handle.kernel.parameters, *["*i8"] * SCRATCH]
        fields = [
            (f"argument {index}", C_TYPES.get(kind, ctypes.c_uint64)) for index, kind in enumerate(kinds)
        ]
        layout = type("Parameters", (ctypes.Structure,), {"_fields_": fields})
        assert size == fields_end(layout)
        packed = layout.from_buffer_copy(ctypes.string_at(extra[1], size).ljust(ctypes.sizeof(layout)))
        arguments = [getattr(packed, name) for name, _ in fields]
        handle.prepare("x" * len(arguments))
        handle.prepared_async_call(
            tuple(shape[:3]),
            tuple(shape[3:]),
            self._stream(stream.value),
            *arguments,
            shared_size=shared_size,
        )

    def put(self, stream: Stream, kernel: Kernel, grid: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        """Into the stream, or into the graph that is being captured.

        Outside of a graph, what reads no memory but the engine's own is counted alone: it takes long here, and the
        runner launches it only so that the driver loads it.
        """
        if stream.handle not in self.captured:
            self.eager += 1
            if not self.computes or not any(self._foreign(value) for value in arguments):
                return
        self.enqueue(stream, lambda: self.compute(kernel, grid, arguments))

    def _foreign(self, value: Any) -> bool:
        return any(memory.foreign and memory.address == value for memory in self.memory)

    def compute(self, kernel: Kernel, grid: tuple[int, ...], arguments: tuple[Any, ...]) -> None:
        passed = (self._value(kind, value) for kind, value in zip(kernel.parameters, arguments, strict=False))
        self._sources[self.plan.kernels.index(kernel)].run(grid, passed)

    def _value(self, kind: str, value: Any) -> Any:
        if kind not in TYPES:
            return value
        content = self.at(value)
        return torch.from_numpy(content[: len(content) // 4 * 4]).view(TYPES[kind])

    def cuStreamBeginCapture_v2(self, stream: Any, mode: int) -> int:  # noqa: N802
        error = self.refused("begin")
        if not error:
            self.captured[self.streams[stream.value].handle] = []
        return error

    def cuStreamEndCapture(self, stream: Any, graph: Any) -> int:  # noqa: N802
        graph._obj.value = next(self._handles)
        self.graphs[graph._obj.value] = self.captured.pop(stream.value)
        return self.refused("end")

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:  # noqa: N802
        executable._obj.value = graph.value + 1
        return self.refused("instantiate")

    def cuGraphLaunch(self, executable: ctypes.c_void_p, stream: Any) -> int:  # noqa: N802
        self.require_current()
        assert executable.value is not None
        error = self.refused("launch")
        if not error:
            self.launched.append(executable.value)
            for work in self.graphs[executable.value - 1] if self.computes else ():
                self.enqueue(self.streams[stream.value], work)
        return error

    def cuGraphExecDestroy(self, executable: ctypes.c_void_p) -> int:  # noqa: N802
        return 0

    def cuGraphDestroy(self, graph: ctypes.c_void_p) -> int:  # noqa: N802
        assert graph.value is not None
        del self.graphs[graph.value]
        return 0
