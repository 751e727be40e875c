"""A Triton plan on the GPU, run by the CUDA driver: no torch, no Triton, no ONNX.

Weights and machine code are loaded once. Every slot has an arena that serves all programs, since one runs at a time in
it, and captures each program's launches into a CUDA graph when it first runs the program. A graph keeps the addresses
with which it was captured. So for images that another package holds on the GPU, the launches that read images run by
themselves, and only the rest is a graph.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rescompile.backends.cuda.driver import Cuda
from rescompile.backends.cuda.graph import CudaGraph
from rescompile.backends.cuda.request_slot import RequestSizes, RequestSlot
from rescompile.backends.cuda.runner import CudaRunner
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
from rescompile.engine_files import EngineFiles, EngineSource, files_in
from rescompile.manifest import Batch

_FORMATS = {"i32": "i", "i64": "q", "fp32": "f"}
"""Format of a number for ``struct``; every address is ``P``."""
PLAIN_SHARED = 48 << 10
"""Bytes of dynamic shared memory that a function may use without an attribute."""


class PlanRunner(CudaRunner["_PlanExecutor"]):
    """An engine with its memory, functions and graphs. Any number of threads may call it, and close it meanwhile.

    Args:
        cuda: the CUDA driver.
        source: the engine's directory, or what was read from it.
        plan: of the engine.
        parallel: requests that run at the same time.

    Raises:
        BackendError: the driver refuses the machine code or has too little memory.
        EngineError: the weights are damaged.
    """

    def __init__(self, cuda: Cuda, source: EngineSource, plan: Plan, *, parallel: int = 1) -> None:
        files = files_in(source)
        weights = read_weights(files, plan)
        least, most = plan.programs[0].batch, plan.programs[-1].batch
        super().__init__(
            cuda,
            lambda: _Network(cuda, files, plan, weights),
            batch=Batch(least, least, most),
            parallel=parallel,
        )


class _Network:
    """Functions and weights, which all slots share."""

    def __init__(self, cuda: Cuda, files: EngineFiles, plan: Plan, weights: dict[str, Array]) -> None:
        self._cuda, self.library, self.plan = cuda.api, cuda.library, plan
        self._modules: dict[str, Any] = {}
        self._held: list[Any] = []
        self.functions: list[Any] = []
        try:
            self.functions += [self._function(files, kernel) for kernel in plan.kernels]
            self._upload(weights)
        except BaseException:
            self.close()
            raise

    def sizes(self) -> RequestSizes:
        image, most = self.plan.image, self.plan.programs[-1].batch
        return RequestSizes(most, image.shape, np.dtype(image.dtype), (self.plan.classes,))

    def executor(self, slot: RequestSlot) -> _PlanExecutor:
        return _PlanExecutor(self, slot)

    def close(self) -> None:
        for memory in self._held:
            memory.free()
        self._held, self._modules, self.functions = [], {}, []

    def _function(self, files: EngineFiles, kernel: Kernel) -> Any:
        if kernel.file not in self._modules:
            self._modules[kernel.file] = self._cuda.module_from_buffer(files.read(kernel.file))
        function = self._modules[kernel.file].get_function(kernel.entry)
        if kernel.shared_bytes > PLAIN_SHARED:
            attribute = self._cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
            function.set_attribute(attribute, kernel.shared_bytes)
        kinds = [_FORMATS.get(kind, "P") for kind in kernel.parameters]
        function.prepare("".join(kinds) + "P" * kernel.scratch)
        return function

    def _upload(self, weights: dict[str, Array]) -> None:
        """Copy all weights at once, into one allocation."""
        packed, offsets = bytearray(), dict[str, int]()
        for name, values in weights.items():
            offsets[name] = len(packed)
            packed += values.tobytes()
            packed += bytes(-len(packed) % ALIGNMENT)
        base = self._cuda.mem_alloc(max(len(packed), ALIGNMENT))
        self._held.append(base)
        self._cuda.memcpy_htod(base, np.frombuffer(packed, np.uint8))
        self.weights = {name: int(base) + offset for name, offset in offsets.items()}


class _PlanExecutor:
    """The arena of one slot, and its graphs by program."""

    def __init__(self, network: _Network, slot: RequestSlot) -> None:
        self._network, self._slot, self._plan = network, slot, network.plan
        self._arena = int(slot.allocate(max(program.arena_bytes for program in self._plan.programs)))
        self._graphs: dict[tuple[int, bool], CudaGraph] = {}

    def rows(self, count: int) -> int:
        return self._plan.program_for(count).batch

    def enqueue(self, rows: int, address: int, image: tuple[int, ...]) -> list[tuple[int, ...]]:
        program, own = self._plan.program_for(rows), address == int(self._slot.images)
        graph = self._graph_of(program, whole=own)
        if not own:
            self._launch_all(program.launches[: _launches_reading_images(program)], address)
        graph.launch(self._slot.stream.handle)
        return [(self._plan.classes,)]

    def close(self) -> None:
        for graph in self._graphs.values():
            graph.close()
        self._graphs = {}

    def _graph_of(self, program: Program, *, whole: bool) -> CudaGraph:
        """The graph of a whole program, or of what follows the launches that read images."""
        if (program.batch, whole) not in self._graphs:
            # once without a graph: older drivers cannot load a kernel while they capture its launch
            self._launch_all(program.launches, int(self._slot.images))
            captured = program.launches[0 if whole else _launches_reading_images(program) :]
            graph, stream = CudaGraph(self._network.library), self._slot.stream.handle
            try:
                with graph.capturing(stream):
                    self._launch_all(captured, int(self._slot.images))
            except BaseException:
                graph.close()
                raise
            self._graphs[program.batch, whole] = graph
        return self._graphs[program.batch, whole]

    def _launch_all(self, launches: tuple[Launch, ...], images: int) -> None:
        for launch in launches:
            kernel = self._plan.kernels[launch.kernel]
            self._network.functions[launch.kernel].prepared_async_call(
                launch.grid,
                (kernel.threads, 1, 1),
                self._slot.stream,
                *(self._value(argument, images) for argument in launch.arguments),
                *[0] * kernel.scratch,
                shared_size=kernel.shared_bytes,
            )

    def _value(self, argument: Argument, images: int) -> int | float:
        if isinstance(argument, Memory):
            return self._arena + argument.offset
        if isinstance(argument, Stored):
            return self._network.weights[argument.name]
        if isinstance(argument, Images):
            return images
        return int(self._slot.outputs[0]) if isinstance(argument, Logits) else argument


def _launches_reading_images(program: Program) -> int:
    """Number of launches up to the last one that reads images."""
    reads = [
        any(isinstance(argument, Images) for argument in launch.arguments) for launch in program.launches
    ]
    return len(reads) - reads[::-1].index(True) if True in reads else 0
