"""Engines on a GPU: requests that run side by side in slots, and images that are read where they are.

A slot has a stream, page-locked host memory, device memory, and what its engine needs for one request: an execution
context for TensorRT, an arena and graphs for a Triton plan. While one slot copies, another computes. Weights and
machine code are held once for all slots. Memory is taken when the engine is loaded, for the largest batch, and never
later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.base import check_batch
from rescompile.backends.cuda.context import PrimaryContext
from rescompile.backends.cuda.driver import Cuda
from rescompile.backends.cuda.image_import import ImageImporter
from rescompile.backends.cuda.request_slot import RequestSizes, RequestSlot
from rescompile.backends.resource_pool import ResourcePool
from rescompile.backends.zero_copy import DeviceImages
from rescompile.errors import BackendError
from rescompile.manifest import Batch


class SlotExecutor(Protocol):
    """Executes the requests of one slot. The context is current in every method; one thread at a time."""

    def rows(self, count: int) -> int:
        """Number of images to execute for a request of ``count``."""
        ...

    def enqueue(self, rows: int, address: int, image: tuple[int, ...]) -> Sequence[tuple[int, ...]]:
        """Put the inference of ``rows`` images at ``address``, each of shape ``image``, into the slot's stream.

        Returns the shape of each output for one image; may raise BackendError.
        """
        ...

    def close(self) -> None:
        """Free everything except the slot."""
        ...


ExecutorT = TypeVar("ExecutorT", bound=SlotExecutor)
ExecutorT_co = TypeVar("ExecutorT_co", bound=SlotExecutor, covariant=True)


class LoadedNetwork(Protocol[ExecutorT_co]):
    """An engine's code and weights on the GPU. The context is current in every method; one thread at a time."""

    def sizes(self) -> RequestSizes:
        """The largest request; may raise BackendError."""
        ...

    def executor(self, slot: RequestSlot) -> ExecutorT_co:
        """The executor of requests in ``slot``; may raise BackendError."""
        ...

    def close(self) -> None:
        """Free code and weights, after the executors are closed."""
        ...


class CudaRunner(Generic[ExecutorT]):
    """An engine on the first GPU. Any number of threads may call it, and close it meanwhile.

    Args:
        cuda: the CUDA driver.
        open_network: called once, with the context current.
        batch: numbers of images that the engine takes at once.
        parallel: number of slots.

    Raises:
        BackendError: the driver or ``open_network`` refuses; everything is freed again.
    """

    def __init__(
        self,
        cuda: Cuda,
        open_network: Callable[[], LoadedNetwork[ExecutorT]],
        *,
        batch: Batch,
        parallel: int,
    ) -> None:
        self.parallel, self._batch = parallel, batch
        self._lock = threading.Lock()
        self._closed = False
        self._context = PrimaryContext(cuda)
        self._resources = ExitStack()
        self._resources.callback(self._context.detach)
        self._executors: list[ExecutorT] = []
        try:
            with self._context.current(), ExitStack() as opened:
                network = open_network()
                opened.callback(network.close)
                sizes = network.sizes()
                self._importer = ImageImporter(cuda)
                opened.callback(self._importer.close)
                slots = []
                for _ in range(parallel):
                    slots.append(RequestSlot(cuda.api, sizes))
                    opened.callback(slots[-1].close)
                    self._executors.append(network.executor(slots[-1]))
                    opened.callback(self._executors[-1].close)
                # zeros and weights are written in the default stream, for which the slots' streams do not wait
                cuda.api.Context.synchronize()
                self._opened = opened.pop_all()
        except BaseException:
            self._resources.close()
            raise
        self._slots = ResourcePool(list(zip(slots, self._executors, strict=True)))

    def __call__(self, images: NDArray[np.generic] | DeviceImages) -> NDArray[np.float32]:
        """The first output [N, ...] of ``images``: see ``all_outputs``."""
        return self.all_outputs(images)[0]

    def all_outputs(self, images: NDArray[np.generic] | DeviceImages) -> tuple[NDArray[np.float32], ...]:
        """Outputs [N, ...] of ``images`` [N, ...], an array in the manifest's layout and dtype or imported ones.

        Imported images may be fewer than the smallest batch.

        Raises:
            BackendError: N is outside of the engine's batch range, the engine is closed, or the driver refuses.
        """
        imported = isinstance(images, DeviceImages) and len(images) > 0
        check_batch(max(len(images), self._batch.min) if imported else len(images), self._batch)
        lent = self._slots.slot()
        with lent.lock:
            slot, executor = lent.resource()
            with self._context.current():
                rows = executor.rows(len(images))
                image = images.shape[1:]
                return slot.run(images, rows, lambda address: executor.enqueue(rows, address, image))

    def import_images(self, given: object) -> DeviceImages:
        """The images of ``given``, an array on a CUDA device: see ``base.ZeroCopyRunner``."""
        with self._lock:
            if self._closed:
                raise BackendError("this engine is closed; load it again")
            with self._context.current():
                return self._importer.import_images(given)

    def close(self) -> None:
        """Finish the calls that run and free everything; calling it twice is harmless."""
        self._slots.drain()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with self._resources, self._context.current():
                self._opened.close()
