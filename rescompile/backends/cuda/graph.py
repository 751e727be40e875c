"""CUDA graphs: a stream's work captured once and launched often. pycuda does not offer them."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rescompile.backends.cuda.driver import call

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on using CUDA meanwhile


class CudaGraph:
    """The work of one stream as a graph. The stream's context is current in every method."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self._graph, self._executable = ctypes.c_void_p(), ctypes.c_void_p()

    @contextmanager
    def capturing(self, stream: int) -> Iterator[None]:
        """Capture what the body puts into ``stream``, a handle, instead of running it; may raise BackendError."""
        call(self._library, "cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _THREAD_LOCAL)
        end = ctypes.c_void_p(stream), ctypes.byref(self._graph)
        try:
            yield
        except BaseException:
            self._library.cuStreamEndCapture(*end)  # else the stream could not be used any more
            raise
        call(self._library, "cuStreamEndCapture", *end)
        made = ctypes.byref(self._executable), self._graph, ctypes.c_ulonglong(0)
        call(self._library, "cuGraphInstantiateWithFlags", *made)

    def launch(self, stream: int) -> None:
        """Put the captured work into ``stream``; may raise BackendError."""
        call(self._library, "cuGraphLaunch", self._executable, ctypes.c_void_p(stream))

    def close(self) -> None:
        """Destroy the graph; calling it twice is harmless."""
        if self._executable:
            self._library.cuGraphExecDestroy(self._executable)
        if self._graph:
            self._library.cuGraphDestroy(self._graph)
        self._executable, self._graph = ctypes.c_void_p(), ctypes.c_void_p()
