"""CUDA graphs through the driver itself, which pycuda does not offer: a stream's work captured once, launched often."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rescompile.backends.cuda.devices import call
from rescompile.errors import BackendError

_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on using CUDA meanwhile


class CudaGraph:
    """The work of one stream as a graph. The context of that stream is current whenever a method runs."""

    def __init__(self, library: Any) -> None:
        self._library: Any = library
        self._graph = ctypes.c_void_p()
        self._executable = ctypes.c_void_p()

    @contextmanager
    def capturing(self, stream: int) -> Iterator[None]:
        """Capture what is put into ``stream``, a handle; none of it runs.

        Raises:
            BackendError: the driver refuses.
        """
        call(self._library, "cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _THREAD_LOCAL)
        try:
            yield
        finally:
            # also behind an error, which would otherwise leave the stream unusable
            ended = self._library.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(self._graph))
        if ended != 0:
            raise BackendError(f"the CUDA driver refuses to end the capture of a graph (error {ended})")
        call(
            self._library,
            "cuGraphInstantiateWithFlags",
            ctypes.byref(self._executable),
            self._graph,
            ctypes.c_ulonglong(0),
        )

    def launch(self, stream: int) -> None:
        """Put the captured work into ``stream``.

        Raises:
            BackendError: the driver refuses.
        """
        call(self._library, "cuGraphLaunch", self._executable, ctypes.c_void_p(stream))

    def close(self) -> None:
        """Give the graph back; calling it twice is harmless."""
        if self._executable:
            self._library.cuGraphExecDestroy(self._executable)
        if self._graph:
            self._library.cuGraphDestroy(self._graph)
        self._executable, self._graph = ctypes.c_void_p(), ctypes.c_void_p()
