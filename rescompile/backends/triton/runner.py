"""A plan on the GPU through pycuda and the driver: no torch, no Triton, no ONNX.

Memory is taken once: weights, images and logits of the largest batch, and one arena for every program, since one runs
at a time. Each program's launches are captured into a CUDA graph when it is first needed. The GPU's primary context is
used, so that other CUDA code of the process shares it; it is current only while a call runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.base import check_batch
from rescompile.backends.cuda_graph import CudaGraph
from rescompile.backends.triton.plan import (
    ALIGNMENT,
    Argument,
    Images,
    Kernel,
    Launch,
    Logits,
    Memory,
    Plan,
    Program,
    Stored,
)
from rescompile.backends.triton.weights import Array, read_weights
from rescompile.errors import BackendError, EngineError
from rescompile.manifest import Batch

_FORMATS = {"i32": "i", "i64": "q", "fp32": "f"}
"""How a number is packed, in the words of ``struct``; every address is ``P``."""
PLAIN_SHARED = 48 << 10
"""Bytes of dynamic shared memory that a function may use without being asked."""


class PlanRunner:
    """An engine with its memory, functions and graphs; serves one thread at a time.

    Args:
        cuda: ``pycuda.driver``.
        library: the CUDA driver itself, for graphs.
        directory: of the engine.
        plan: of the engine.

    Raises:
        BackendError: the driver refuses the machine code or has too little memory.
        EngineError: the weights are damaged.
    """

    def __init__(self, cuda: Any, library: Any, directory: Path, plan: Plan) -> None:
        self._cuda, self._library, self._plan = cuda, library, plan
        weights = read_weights(directory, plan)
        self._graphs: dict[int, CudaGraph] = {}
        self._allocations: list[Any] = []
        self._modules: dict[str, Any] = {}
        cuda.init()
        self._device: Any = cuda.Device(0).retain_primary_context()
        try:
            with self._current():
                self._prepare(directory, weights)
        except BaseException:
            self.close()
            raise

    def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...] in the manifest's layout and dtype.

        Raises:
            BackendError: N is outside of the engine's batch range, the engine is closed, or the driver refuses.
        """
        if self._device is None:
            raise BackendError("this engine is closed; load it again")
        programs = self._plan.programs
        check_batch(len(images), Batch(programs[0].batch, programs[0].batch, programs[-1].batch))
        program = self._plan.program_for(len(images))
        logits = np.empty((len(images), self._plan.classes), np.float32)
        with self._current():
            graph = self._graph_of(program)
            self._cuda.memcpy_htod_async(self._images, np.ascontiguousarray(images), self._stream)
            graph.launch(self._stream.handle)
            self._cuda.memcpy_dtoh_async(logits, self._logits, self._stream)
            self._stream.synchronize()
        return logits

    def close(self) -> None:
        """Free memory, graphs and modules; calling it twice is harmless."""
        if self._device is None:
            return
        with self._current():
            for graph in self._graphs.values():
                graph.close()
            for allocation in self._allocations:
                allocation.free()
            self._graphs, self._allocations, self._modules = {}, [], {}
            self._functions: list[Any] = []
            self._stream: Any = None
        self._device.detach()
        self._device = None

    def _prepare(self, directory: Path, weights: dict[str, Array]) -> None:
        plan, most = self._plan, self._plan.programs[-1].batch
        self._stream = self._cuda.Stream()
        self._functions = [self._function(directory, kernel) for kernel in plan.kernels]
        self._images = self._allocate(most * plan.image.bytes)
        self._logits = self._allocate(most * plan.classes * 4)
        self._arena = self._allocate(max(program.arena_bytes for program in plan.programs))
        self._upload(weights)

    def _function(self, directory: Path, kernel: Kernel) -> Any:
        if kernel.file not in self._modules:
            path = directory / kernel.file
            try:
                code = path.read_bytes()
            except OSError as error:
                raise EngineError(
                    f"{path} cannot be read ({error.strerror}); copy or build the engine again"
                ) from error
            self._modules[kernel.file] = self._cuda.module_from_buffer(code)
        function = self._modules[kernel.file].get_function(kernel.entry)
        if kernel.shared_bytes > PLAIN_SHARED:
            attribute = self._cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
            function.set_attribute(attribute, kernel.shared_bytes)
        kinds = [_FORMATS.get(kind, "P") for kind in kernel.parameters]
        function.prepare("".join(kinds) + "P" * kernel.scratch)
        return function

    def _upload(self, weights: dict[str, Array]) -> None:
        """All weights in one allocation and one copy."""
        offsets: dict[str, int] = {}
        size = 0
        for name, values in weights.items():
            offsets[name] = size
            size += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
        packed = np.zeros(size, np.uint8)
        for name, values in weights.items():
            begin = offsets[name]
            packed[begin : begin + values.nbytes] = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        base = self._allocate(size)
        self._cuda.memcpy_htod(base, packed)
        self._weights = {name: int(base) + offset for name, offset in offsets.items()}

    def _allocate(self, size: int) -> Any:
        """Zeroed memory: what was there before is nobody's image."""
        allocation = self._cuda.mem_alloc(max(size, ALIGNMENT))
        self._allocations.append(allocation)
        self._cuda.memset_d8(allocation, 0, max(size, ALIGNMENT))
        return allocation

    def _graph_of(self, program: Program) -> CudaGraph:
        if program.batch not in self._graphs:
            # once without a graph: older drivers cannot load a kernel while they capture its launch
            self._launch_all(program)
            graph = CudaGraph(self._library)
            try:
                with graph.capturing(self._stream.handle):
                    self._launch_all(program)
            except BaseException:
                graph.close()
                raise
            self._graphs[program.batch] = graph
        return self._graphs[program.batch]

    def _launch_all(self, program: Program) -> None:
        for launch in program.launches:
            self._launch(launch)

    def _launch(self, launch: Launch) -> None:
        kernel = self._plan.kernels[launch.kernel]
        arguments = [self._value(argument) for argument in launch.arguments]
        self._functions[launch.kernel].prepared_async_call(
            launch.grid,
            (kernel.threads, 1, 1),
            self._stream,
            *arguments,
            *[0] * kernel.scratch,
            shared_size=kernel.shared_bytes,
        )

    def _value(self, argument: Argument) -> int | float:
        if isinstance(argument, Memory):
            return int(self._arena) + argument.offset
        if isinstance(argument, Stored):
            return self._weights[argument.name]
        if isinstance(argument, Images | Logits):
            return int(self._images if isinstance(argument, Images) else self._logits)
        return argument

    @contextmanager
    def _current(self) -> Iterator[None]:
        """The context, and the driver's errors in our words."""
        self._device.push()
        try:
            yield
        except self._cuda.Error as error:
            raise BackendError(f"the CUDA driver cannot run this engine: {error}") from error
        finally:
            self._cuda.Context.pop()
