"""CUDA events, which let one stream wait for the work of another without blocking a thread."""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Any

from rescompile.backends.cuda.driver import call

_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING


class Event:
    """One event; it goes back to its pool when the object is dropped."""

    def __init__(self, library: Any, handle: int, unused: deque[int]) -> None:
        self._library, self._handle, self._unused = library, handle, unused

    def record(self, stream: int) -> None:
        """Mark the end of the work that ``stream``, a handle, was given so far; may raise BackendError."""
        call(self._library, "cuEventRecord", ctypes.c_void_p(self._handle), ctypes.c_void_p(stream))

    def make_wait(self, stream: int) -> None:
        """Let later work of ``stream`` wait for the marked work; may raise BackendError."""
        call(self._library, "cuStreamWaitEvent", ctypes.c_void_p(stream), ctypes.c_void_p(self._handle), 0)

    def __del__(self) -> None:
        # no call of the driver: this may be any thread, with any context
        self._unused.append(self._handle)


class EventPool:
    """Events that are used again and again; it grows to the most that were in use at one time.

    Their context is current in ``take`` and ``close``, which one thread calls at a time.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._made: list[int] = []
        self._unused: deque[int] = deque()

    def take(self) -> Event:
        """An event that is not in use; may raise BackendError."""
        try:
            handle = self._unused.popleft()
        except IndexError:
            handle = self._make()
        return Event(self._library, handle, self._unused)

    def close(self) -> None:
        """Destroy all events, those in use too."""
        for handle in self._made:
            self._library.cuEventDestroy_v2(ctypes.c_void_p(handle))
        self._made.clear()

    def _make(self) -> int:
        made = ctypes.c_void_p()
        call(self._library, "cuEventCreate", ctypes.byref(made), _DISABLE_TIMING)
        handle = made.value or 0
        self._made.append(handle)
        return handle
