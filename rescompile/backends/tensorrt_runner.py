"""A TensorRT engine on the GPU, through pycuda: no torch.

Device memory is taken once, for the largest batch. The GPU's primary context is used, so that other CUDA code of
the process (torch, too) shares it; it is current only while a call runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.base import check_batch
from rescompile.backends.tensorrt_callbacks import joined, make_logger
from rescompile.errors import BackendError
from rescompile.manifest import Manifest


class TensorRtRunner:
    """An engine with its execution context, stream and buffers; serves one thread at a time.

    Raises:
        BackendError: TensorRT refuses the engine.
    """

    def __init__(self, trt: Any, cuda: Any, engine: bytes, manifest: Manifest) -> None:
        self._cuda, self._batch = cuda, manifest.batch
        self._input, self._output = manifest.inputs[0], manifest.outputs[0]
        self._logger = make_logger(trt)
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._stream: Any = None
        cuda.init()
        self._device: Any = cuda.Device(0).retain_primary_context()
        try:
            with self._current():
                self._prepare(trt, engine)
        except BaseException:
            self._release()
            raise

    def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...] in the manifest's layout and dtype.

        Raises:
            BackendError: N is outside of the engine's batch range, or the engine is closed.
        """
        if self._device is None:
            raise BackendError("this engine is closed; load it again")
        check_batch(len(images), self._batch)
        logits = np.empty((len(images), *self._output.shape[1:]), np.float32)
        with self._current():
            if not self._context.set_input_shape(self._input.name, images.shape):
                raise BackendError(f"the engine refuses images of shape {list(images.shape)}")
            self._cuda.memcpy_htod_async(self._fed, np.ascontiguousarray(images), self._stream)
            if not self._context.execute_async_v3(self._stream.handle):
                raise BackendError(f"the engine cannot be executed: {joined(self._logger.errors)}")
            self._cuda.memcpy_dtoh_async(logits, self._answered, self._stream)
            self._stream.synchronize()
        return logits

    def attach(self, profiler: Any) -> None:
        """Let ``profiler``, an IProfiler, be told the time of each layer at every later call."""
        with self._current():
            self._context.profiler = profiler

    def close(self) -> None:
        """Free the buffers and the engine; calling it twice is harmless."""
        if self._device is not None:
            with self._current():
                self._fed.free()
                self._answered.free()
                self._context = self._engine = self._runtime = self._stream = None
            self._release()

    def _prepare(self, trt: Any, engine: bytes) -> None:
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine)
        self._context = None if self._engine is None else self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(f"{trt.__name__} refuses the engine: {joined(self._logger.errors)}")
        self._stream = self._cuda.Stream()
        self._fed: Any = self._allocate(self._input.name, self._input.shape, self._input.dtype)
        self._answered: Any = self._allocate(self._output.name, self._output.shape, self._output.dtype)

    def _allocate(self, name: str, shape: tuple[int, ...], dtype: str) -> Any:
        """Memory for the largest batch, as the address of tensor ``name``."""
        count = self._batch.max * int(np.prod(shape[1:]))
        memory = self._cuda.mem_alloc(count * np.dtype(dtype).itemsize)
        self._context.set_tensor_address(name, int(memory))
        return memory

    @contextmanager
    def _current(self) -> Iterator[None]:
        """The context, and the driver's errors in our words: too little memory for the largest batch, for one."""
        self._device.push()
        try:
            yield
        except self._cuda.Error as error:
            raise BackendError(f"the CUDA driver cannot run this engine: {error}") from error
        finally:
            self._cuda.Context.pop()

    def _release(self) -> None:
        self._device.detach()
        self._device = None
