"""A TensorRT engine on the GPU, through pycuda: no torch.

Every slot has an execution context of its own. No CUDA graphs: a captured graph belongs to one shape of its context,
and TensorRT for RTX may put better kernels in place later, which a graph would never see.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from rescompile.backends.cuda.request_slot import RequestSizes, RequestSlot
from rescompile.backends.cuda.runner import CudaRunner
from rescompile.backends.tensorrt.callbacks import joined, make_logger
from rescompile.errors import BackendError
from rescompile.manifest import Manifest


class TensorRtRunner(CudaRunner["_SlotExecutor"]):
    """An engine with its execution contexts. Any number of threads may call it, and close it meanwhile.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        cuda: ``pycuda.driver``.
        library: the CUDA driver itself.
        engine: the serialized engine.
        parallel: requests that run at the same time.

    Raises:
        BackendError: TensorRT refuses the engine, or the driver has too little memory.
    """

    def __init__(
        self, trt: Any, cuda: Any, library: Any, engine: bytes, manifest: Manifest, *, parallel: int = 1
    ) -> None:
        fed, answered = manifest.inputs[0], manifest.outputs[0]
        super().__init__(
            cuda,
            library,
            lambda: _Network(trt, engine, manifest),
            sizes=RequestSizes(manifest.batch.max, fed.shape[1:], np.dtype(fed.dtype), answered.shape[-1]),
            batch=manifest.batch,
            parallel=parallel,
        )

    def attach(self, profiler: Any) -> None:
        """Let ``profiler``, an IProfiler, be told the time of each layer at every later call."""
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

    def executor(self, slot: RequestSlot) -> _SlotExecutor:
        """An execution context, which takes the memory of its activations."""
        context = self._engine.create_execution_context()
        answered = self._manifest.outputs[0].name
        if context is None or not context.set_tensor_address(answered, int(slot.logits)):
            self._refuse()
        return _SlotExecutor(context, slot, self._manifest, self._logger)

    def close(self) -> None:
        """Drop the engine."""
        self._engine = self._runtime = None

    def _refuse(self) -> NoReturn:
        raise BackendError(f"{self._module} refuses the engine: {_said(self._logger)}")


class _SlotExecutor:
    """An execution context, whose logits go to its slot."""

    def __init__(self, context: Any, slot: RequestSlot, manifest: Manifest, logger: Any) -> None:
        self.context: Any = context
        self._slot, self._logger = slot, logger
        self._fed, self._least = manifest.inputs[0].name, manifest.batch.min

    def rows(self, count: int) -> int:
        """``count``, or the smallest batch."""
        return max(count, self._least)

    def enqueue(self, rows: int, address: int) -> None:
        """Put one inference into the slot's stream."""
        shape = (rows, *self._slot.sizes.image)
        if not self.context.set_input_shape(self._fed, shape):
            raise BackendError(f"the engine refuses images of shape {list(shape)}")
        if not self.context.set_tensor_address(self._fed, address):
            raise BackendError(f"the engine refuses images at its address: {_said(self._logger)}")
        if not self.context.execute_async_v3(self._slot.stream.handle):
            raise BackendError(f"the engine cannot be executed: {_said(self._logger)}")

    def close(self) -> None:
        """Drop the context."""
        self.context = None


def _said(logger: Any) -> str:
    """What TensorRT reported since it was last asked."""
    words = joined(logger.errors)
    logger.errors.clear()
    return words
