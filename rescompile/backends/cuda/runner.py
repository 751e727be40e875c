"""What every engine on a GPU shares: slots in which requests run at the same time, and images that are there already.

A slot has a stream, page-locked host memory, device memory and what its engine needs for one request: an execution
context for TensorRT, an arena and graphs for a Triton plan. While one slot copies, another computes; what an engine
holds once (weights, machine code) serves all of them. Memory is taken when the engine is loaded, for the largest
batch, and never later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.base import check_batch
from rescompile.backends.cuda.context import PrimaryContext
from rescompile.backends.cuda.image_import import ImageImporter
from rescompile.backends.cuda.request_slot import RequestSizes, RequestSlot
from rescompile.backends.resource_pool import ResourcePool
from rescompile.backends.zero_copy import DeviceImages
from rescompile.errors import BackendError
from rescompile.manifest import Batch


class SlotExecutor(Protocol):
    """What executes the requests of one slot. The context is current in every method; one thread at a time."""

    def rows(self, count: int) -> int:
        """How many images are executed for ``count`` of them."""
        ...

    def enqueue(self, rows: int, address: int) -> None:
        """Put the work on ``rows`` images at ``address`` into the slot's stream.

        Raises:
            BackendError: the library refuses.
        """
        ...

    def close(self) -> None:
        """Give everything back but the slot."""
        ...


L = TypeVar("L", bound=SlotExecutor)
L_co = TypeVar("L_co", bound=SlotExecutor, covariant=True)


class Network(Protocol[L_co]):
    """An engine's code and weights on the GPU. The context is current in every method; one thread at a time."""

    def executor(self, slot: RequestSlot) -> L_co:
        """What executes requests in ``slot``.

        Raises:
            BackendError: the library refuses.
        """
        ...

    def close(self) -> None:
        """Give everything back, once the executors are closed."""
        ...


class CudaRunner(Generic[L]):
    """An engine on the first GPU, with ``parallel`` slots. Any number of threads may call it, and close it meanwhile.

    Args:
        cuda: ``pycuda.driver``.
        library: the CUDA driver itself.
        open_network: called once, with the context current.
        sizes: of images and logits; ``sizes.most`` is the largest batch.
        batch: numbers of images that the engine takes at once.
        parallel: slots.

    Raises:
        BackendError: the driver or ``open_network`` refuses; nothing stays behind.
    """

    def __init__(
        self,
        cuda: Any,
        library: Any,
        open_network: Callable[[], Network[L]],
        *,
        sizes: RequestSizes,
        batch: Batch,
        parallel: int,
    ) -> None:
        self.parallel, self._batch = parallel, batch
        self._lock = threading.Lock()
        self._closed = False
        self._context = PrimaryContext(cuda, library)
        self._held = ExitStack()
        self._held.callback(self._context.detach)
        try:
            with self._context.current(), ExitStack() as opened:
                network = open_network()
                opened.callback(network.close)
                self._importer = ImageImporter(cuda, library)
                opened.callback(self._importer.close)
                self._executors: list[L] = []
                slots = [self._open(cuda, network, sizes, opened) for _ in range(parallel)]
                # zeros and weights are on their way in the default stream, for which no slot's stream waits
                cuda.Context.synchronize()
                self._opened = opened.pop_all()
        except BaseException:
            self._held.close()
            raise
        self._idle = ResourcePool(list(zip(slots, self._executors, strict=True)))

    def __call__(self, images: NDArray[np.generic] | DeviceImages) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...], an array in the manifest's layout and dtype or a lent one.

        Lent images may be fewer than the smallest batch.

        Raises:
            BackendError: N is outside of the engine's batch range, the engine is closed, or the driver refuses.
        """
        lent = isinstance(images, DeviceImages) and len(images) > 0
        check_batch(max(len(images), self._batch.min) if lent else len(images), self._batch)
        with self._idle.acquire() as (slot, executor), self._context.current():
            rows = executor.rows(len(images))
            return slot.run(images, rows, lambda address: executor.enqueue(rows, address))

    def import_images(self, given: object) -> DeviceImages:
        """The images of ``given``, which is on a CUDA device: see ``base.ZeroCopyRunner``."""
        with self._lock:
            if self._closed:
                raise BackendError("this engine is closed; load it again")
            with self._context.current():
                return self._importer.import_images(given)

    def close(self) -> None:
        """Finish the calls that run and free everything; calling it twice is harmless."""
        self._idle.drain()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with self._held, self._context.current():
                self._opened.close()

    def _open(self, cuda: Any, network: Network[L], sizes: RequestSizes, opened: ExitStack) -> RequestSlot:
        """A slot with its executor, both closed with ``opened``."""
        slot = RequestSlot(cuda, sizes)
        opened.callback(slot.close)
        executor = network.executor(slot)
        opened.callback(executor.close)
        self._executors.append(executor)
        return slot
