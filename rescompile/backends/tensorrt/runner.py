"""A TensorRT engine on the GPU; needs no torch.

Every slot has its own execution context. There are no CUDA graphs: a captured graph belongs to one shape of its
context, and TensorRT for RTX may replace kernels later, which a graph would not see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.cuda.driver import Cuda
from rescompile.backends.cuda.request_slot import RequestSizes, RequestSlot
from rescompile.backends.cuda.runner import CudaRunner
from rescompile.backends.tensorrt.callbacks import joined_messages, make_logger
from rescompile.backends.zero_copy import DeviceImages
from rescompile.errors import BackendError
from rescompile.manifest import Manifest, OutputSpec


class TensorRtRunner(CudaRunner["_ContextExecutor"]):
    """An engine with its execution contexts. Any number of threads may call it, and close it meanwhile.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        cuda: the CUDA driver.
        engine: the serialized engine.
        manifest: of the engine.
        parallel: requests that run at the same time.

    Raises:
        BackendError: TensorRT refuses the engine, or the GPU has too little memory.
    """

    def __init__(self, trt: Any, cuda: Cuda, engine: bytes, manifest: Manifest, *, parallel: int = 1) -> None:
        self._outputs = manifest.outputs
        super().__init__(
            cuda, lambda: _Network(trt, engine, manifest), batch=manifest.batch, parallel=parallel
        )

    def tensors(self, images: NDArray[np.generic] | DeviceImages) -> dict[str, NDArray[np.float32]]:
        """All outputs by name, in their shapes; otherwise like a call."""
        return {
            output.name: found for output, found in zip(self._outputs, self.all_outputs(images), strict=True)
        }

    def attach(self, profiler: Any) -> None:
        """Report the time of each layer of all later calls to ``profiler``, an IProfiler."""
        with self._context.current():
            for executor in self._executors:
                executor.context.profiler = profiler


class _Network:
    """The deserialized engine."""

    def __init__(self, trt: Any, engine: bytes, manifest: Manifest) -> None:
        self._logger, self._module, self._manifest = make_logger(trt), trt.__name__, manifest
        self._runtime: Any = trt.Runtime(self._logger)
        self._engine: Any = self._runtime.deserialize_cuda_engine(engine)
        if self._engine is None:
            self._refuse()

    def sizes(self) -> RequestSizes:
        fed, outputs, sizes = self._manifest.inputs[0], self._manifest.outputs, self._manifest.sizes
        largest = fed.shape[1:] if sizes is None else fed.of_size(sizes.max)
        shapes = [output.shape[1:] for output in outputs]
        if any(output.resizable for output in outputs):
            context = self._engine.create_execution_context()
            if context is None or not context.set_input_shape(fed.name, (self._manifest.batch.max, *largest)):
                self._refuse()
            shapes = _output_shapes(context, outputs)
        values = tuple(map(math.prod, shapes))
        return RequestSizes(self._manifest.batch.max, largest, np.dtype(fed.dtype), values)

    def executor(self, slot: RequestSlot) -> _ContextExecutor:
        context = self._engine.create_execution_context()  # takes the memory of its activations
        places = zip(self._manifest.outputs, slot.outputs, strict=True)
        if context is None or not all(
            context.set_tensor_address(output.name, int(place)) for output, place in places
        ):
            self._refuse()
        return _ContextExecutor(context, slot, self._manifest, self._logger)

    def close(self) -> None:
        self._engine = self._runtime = None

    def _refuse(self) -> NoReturn:
        raise BackendError(f"{self._module} refuses the engine: {_new_errors(self._logger)}")


class _ContextExecutor:
    """An execution context whose outputs go to its slot."""

    def __init__(self, context: Any, slot: RequestSlot, manifest: Manifest, logger: Any) -> None:
        self.context: Any = context
        self._slot, self._logger = slot, logger
        self._images, self._least = manifest.inputs[0].name, manifest.batch.min
        self._outputs = manifest.outputs

    def rows(self, count: int) -> int:
        return max(count, self._least)

    def enqueue(self, rows: int, address: int, image: tuple[int, ...]) -> list[tuple[int, ...]]:
        shape = (rows, *image)
        if not self.context.set_input_shape(self._images, shape):
            raise BackendError(f"the engine refuses images of shape {list(shape)}")
        if not self.context.set_tensor_address(self._images, address):
            raise BackendError(f"the engine refuses the address of the images: {_new_errors(self._logger)}")
        if not self.context.execute_async_v3(self._slot.stream.handle):
            raise BackendError(f"the engine cannot be executed: {_new_errors(self._logger)}")
        return _output_shapes(self.context, self._outputs)

    def close(self) -> None:
        self.context = None


def _output_shapes(context: Any, outputs: Sequence[OutputSpec]) -> list[tuple[int, ...]]:
    """Shape of each output for one image of the size that the context is set to."""
    return [
        tuple(context.get_tensor_shape(output.name))[1:] if output.resizable else output.shape[1:]
        for output in outputs
    ]


def _new_errors(logger: Any) -> str:
    """The errors that TensorRT reported since this was last called."""
    text = joined_messages(logger.errors)
    logger.errors.clear()
    return text
