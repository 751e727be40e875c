"""Images that other packages hold on the GPU, checked and read where they are."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

from rescompile.backends.cuda.array_protocols import ArrayMemory, check_device, describe
from rescompile.backends.cuda.context import DEVICE
from rescompile.backends.cuda.driver import Cuda
from rescompile.backends.cuda.events import EventPool
from rescompile.backends.zero_copy import DeviceImages, type_name
from rescompile.errors import UsageError

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, in which torch works
_CONTEXT, _ORDINAL = 1, 9  # CU_POINTER_ATTRIBUTE_CONTEXT and _DEVICE_ORDINAL


class ImageImporter:
    """Takes other packages' arrays, each with an event that marks when it is written.

    The context is current in every method. Any thread may call ``import_images``; ``close`` comes last.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._library = cuda.library
        self._stream: Any = cuda.api.Stream(NON_BLOCKING)
        self._events = EventPool(cuda.library)
        self._lock = threading.Lock()

    def import_images(self, given: object) -> DeviceImages:
        """The images of ``given``, an array on a CUDA device.

        Raises:
            UsageError: they cannot be read where they are.
            BackendError: the driver refuses.
        """
        with self._lock:  # the stream waits for one writer at a time
            event = self._events.take()
            found = describe(given, self._stream.handle, DEVICE)
            self._check_context(given, found)
            event.record(self._stream.handle if found.stream is None else found.stream)
        return DeviceImages(found.address, found.shape, found.dtype, found.owner, event)

    def close(self) -> None:
        """Destroy stream and events."""
        self._events.close()
        self._stream = None

    def _check_context(self, given: object, found: ArrayMemory) -> None:
        """Refuse an address that this context cannot reach: reading it would destroy the context."""
        if 0 in found.shape:
            return
        number, owner, here = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        address = ctypes.c_void_p(found.address)
        if self._library.cuPointerGetAttribute(ctypes.byref(number), _ORDINAL, address) != 0:
            raise UsageError(
                f"the {type_name(given)} does not lie in memory of the CUDA driver; pass a tensor that is "
                "still alive, or a NumPy array"
            )
        check_device(given, number.value, DEVICE)
        self._library.cuCtxGetCurrent(ctypes.byref(here))
        # memory that was mapped and not allocated belongs to no context
        known = self._library.cuPointerGetAttribute(ctypes.byref(owner), _CONTEXT, address) == 0
        if known and owner.value not in (None, here.value):
            raise UsageError(
                f"the {type_name(given)} belongs to another CUDA context; make it in the device's primary context, as "
                "torch, CuPy and Numba do, or pass a NumPy array"
            )
