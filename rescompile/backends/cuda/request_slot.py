"""What one request has for itself on the GPU: a stream, and memory on both sides of the bus."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.cuda.image_import import NON_BLOCKING
from rescompile.backends.zero_copy import DeviceImages

ALIGNMENT = 256
"""Bytes: TensorRT asks for it, and Triton's kernels were compiled for 16 of them."""


class RequestSizes(NamedTuple):
    """What a request needs at most."""

    most: int
    """Images."""
    image: tuple[int, ...]
    """Shape of one."""
    dtype: np.dtype[Any]
    classes: int


class RequestSlot:
    """Room for one request of the largest batch. The context is current in every method; one thread at a time.

    Work is put into the stream and nobody waits until all of it is there. Images and logits travel through
    page-locked memory: from other memory the driver would copy in the caller's time.

    Raises:
        the driver's own error: there is too little memory; nothing stays behind.
    """

    def __init__(self, cuda: Any, sizes: RequestSizes) -> None:
        self._cuda, self.sizes = cuda, sizes
        self._held: list[Any] = []
        self.stream: Any = cuda.Stream(NON_BLOCKING)
        try:
            self.images = self.allocate(sizes.most * math.prod(sizes.image) * sizes.dtype.itemsize)
            self.logits = self.allocate(sizes.most * sizes.classes * 4)
            self._sent = self._locked((sizes.most, *sizes.image), sizes.dtype)
            self._answered = self._locked((sizes.most, sizes.classes), np.dtype(np.float32))
        except BaseException:
            self.close()
            raise

    def allocate(self, size: int) -> Any:
        """``size`` bytes on the GPU, freed with the slot and zeroed: what was there before is nobody's image."""
        allocation = self._cuda.mem_alloc(max(size, ALIGNMENT))
        self._held.append(allocation)
        self._cuda.memset_d8(allocation, 0, max(size, ALIGNMENT))
        return allocation

    def run(
        self, images: NDArray[np.generic] | DeviceImages, rows: int, enqueue: Callable[[int], None]
    ) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...], executed by ``enqueue`` as ``rows`` images, at least N.

        Args:
            enqueue: puts the work on images at an address, aligned, into the stream; the logits go to ``logits``.

        Raises:
            the driver's own error, and those of ``enqueue``: nothing of the request is under way any more.
        """
        count = len(images)
        try:
            enqueue(self._address_of(images, rows))
            self._cuda.memcpy_dtoh_async(self._answered[:count], self.logits, self.stream)
            self.stream.synchronize()
        except BaseException:
            # what was put into the stream reads the caller's memory, and ours
            with suppress(self._cuda.Error):
                self.stream.synchronize()
            raise
        return self._answered[:count].copy()

    def close(self) -> None:
        """Free the memory; calling it twice is harmless."""
        for memory in self._held:
            memory.free()
        self._held, self.stream = [], None

    def _address_of(self, images: NDArray[np.generic] | DeviceImages, rows: int) -> int:
        """Where ``rows`` images, the given ones first, are read once the stream is there."""
        if isinstance(images, DeviceImages):
            images.ready.make_wait(self.stream.handle)
            if rows == len(images) and images.address % ALIGNMENT == 0:
                return images.address
            self._cuda.memcpy_dtod_async(self.images, images.address, images.nbytes, self.stream)
        else:
            np.copyto(self._sent[: len(images)], images)
            self._cuda.memcpy_htod_async(self.images, self._sent[: len(images)], self.stream)
        return int(self.images)

    def _locked(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        made: NDArray[Any] = self._cuda.pagelocked_empty(shape, dtype)
        self._held.append(made.base)
        return made
