"""Events of the CUDA driver: one stream waits for what another was given so far, and no thread does."""

from __future__ import annotations

import ctypes
from collections import deque
from typing import Any

from rescompile.backends.cuda.devices import call

_DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING


class Event:
    """One event. It goes back to its ``Events`` when nobody holds it any more."""

    def __init__(self, library: Any, handle: int, idle: deque[int]) -> None:
        self._library, self._handle, self._idle = library, handle, idle

    def record(self, stream: int) -> None:
        """Stand for the work that ``stream``, a handle, was given so far.

        Raises:
            BackendError: the driver refuses.
        """
        call(self._library, "cuEventRecord", ctypes.c_void_p(self._handle), ctypes.c_void_p(stream))

    def make_wait(self, stream: int) -> None:
        """Let what ``stream`` is given from now on wait for that work.

        Raises:
            BackendError: the driver refuses.
        """
        call(self._library, "cuStreamWaitEvent", ctypes.c_void_p(stream), ctypes.c_void_p(self._handle), 0)

    def __del__(self) -> None:
        # no call of the driver: this may be any thread, with any context
        self._idle.append(self._handle)


class Events:
    """Events that are used again and again; there are as many as were held at one time.

    Their context is current in ``take`` and ``close``. One thread at a time may call these.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._made: list[int] = []
        self._idle: deque[int] = deque()

    def take(self) -> Event:
        """One that nobody holds.

        Raises:
            BackendError: the driver refuses.
        """
        try:
            handle = self._idle.popleft()
        except IndexError:
            handle = self._make()
        return Event(self._library, handle, self._idle)

    def close(self) -> None:
        """Destroy them all, those that are held, too."""
        for handle in self._made:
            self._library.cuEventDestroy_v2(ctypes.c_void_p(handle))
        self._made.clear()

    def _make(self) -> int:
        made = ctypes.c_void_p()
        call(self._library, "cuEventCreate", ctypes.byref(made), _DISABLE_TIMING)
        handle = made.value or 0
        self._made.append(handle)
        return handle
