"""Stream and memory of one request on the GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.cuda.image_import import NON_BLOCKING
from rescompile.backends.zero_copy import DeviceImages

ALIGNMENT = 256
"""Bytes that addresses are multiples of: TensorRT asks for 256, Triton's kernels were compiled for 16."""


class RequestSizes(NamedTuple):
    """The largest request."""

    most: int
    """Images."""
    image: tuple[int, ...]
    """Shape of the largest image."""
    dtype: np.dtype[Any]
    outputs: tuple[int, ...]
    """Most values of each output for one image."""


class RequestSlot:
    """Room for one request of the largest batch. The context is current in every method; one thread at a time.

    All work of a request is put into the stream before anything waits. Images and outputs travel through page-locked
    memory: copies from other memory would block the caller.

    Args:
        cuda: ``pycuda.driver`` or what stands in for it, whose error is raised where there is too little memory.
        sizes: of the largest request.
    """

    def __init__(self, cuda: Any, sizes: RequestSizes) -> None:
        self._cuda, self.sizes = cuda, sizes
        self._held: list[Any] = []
        self.stream: Any = cuda.Stream(NON_BLOCKING)
        try:
            self.images = self.allocate(sizes.most * math.prod(sizes.image) * sizes.dtype.itemsize)
            self.outputs = [self.allocate(sizes.most * values * 4) for values in sizes.outputs]
            self._sent = self._page_locked((sizes.most * math.prod(sizes.image),), sizes.dtype)
            self._answered = [
                self._page_locked((sizes.most * values,), np.dtype(np.float32)) for values in sizes.outputs
            ]
        except BaseException:
            self.close()
            raise

    def allocate(self, size: int) -> Any:
        """``size`` bytes on the GPU, freed with the slot, and zeroed so that no earlier data is read."""
        allocation = self._cuda.mem_alloc(max(size, ALIGNMENT))
        self._held.append(allocation)
        self._cuda.memset_d8(allocation, 0, max(size, ALIGNMENT))
        return allocation

    def run(
        self,
        images: NDArray[np.generic] | DeviceImages,
        rows: int,
        enqueue: Callable[[int], Sequence[tuple[int, ...]]],
    ) -> tuple[NDArray[np.float32], ...]:
        """Outputs [N, ...] of ``images`` [N, ...], executed by ``enqueue`` as ``rows`` >= N images.

        ``enqueue`` is called with the images' address and puts their inference into the stream; each output goes to its
        place in ``outputs``, and its shape for one image is returned. After an error of the driver or of ``enqueue`` no
        work of the request is pending.
        """
        count = len(images)
        try:
            shapes = enqueue(self._address_of(images, rows))
            found = [
                answered[: count * math.prod(shape)].reshape(count, *shape)
                for answered, shape in zip(self._answered, shapes, strict=True)
            ]
            for answered, output in zip(found, self.outputs, strict=True):
                self._cuda.memcpy_dtoh_async(answered, output, self.stream)
            self.stream.synchronize()
        except BaseException:
            # what is in the stream already reads the caller's memory, and ours
            with suppress(self._cuda.Error):
                self.stream.synchronize()
            raise
        return tuple(answered.copy() for answered in found)

    def close(self) -> None:
        """Free the memory; calling it twice is harmless."""
        for memory in self._held:
            memory.free()
        self._held, self.stream = [], None

    def _address_of(self, images: NDArray[np.generic] | DeviceImages, rows: int) -> int:
        """Address of ``rows`` images, the given ones first, once the stream has come so far."""
        if isinstance(images, DeviceImages):
            images.ready.make_wait(self.stream.handle)
            if rows == len(images) and images.address % ALIGNMENT == 0:
                return images.address
            self._cuda.memcpy_dtod_async(self.images, images.address, images.nbytes, self.stream)
        else:
            sent = self._sent[: images.size].reshape(images.shape)
            np.copyto(sent, images)
            self._cuda.memcpy_htod_async(self.images, sent, self.stream)
        return int(self.images)

    def _page_locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        made: NDArray[Any] = self._cuda.pagelocked_empty(shape, dtype)
        self._held.append(made.base)
        return made
