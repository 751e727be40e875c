"""The first GPU's primary context through pycuda; other CUDA code of the process (torch, too) shares it."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rescompile.errors import BackendError

DEVICE = 0
"""The GPU that every engine runs on."""


class PrimaryContext:
    """The context, current in a thread only within ``current``. Any thread may use it.

    Args:
        cuda: ``pycuda.driver``.
        library: the CUDA driver itself.

    Raises:
        BackendError: the driver refuses.
    """

    def __init__(self, cuda: Any, library: Any) -> None:
        self._cuda, self._library = cuda, library
        with self._translate_errors():
            cuda.init()
            self._context: Any = cuda.Device(DEVICE).retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        """The context for the body, and the driver's errors in our words: too little memory, for one.

        Raises:
            BackendError: the driver refuses what the body asks for.
        """
        with self._translate_errors():
            self._context.push()
            try:
                yield
            finally:
                self._cuda.Context.pop()

    def detach(self) -> None:
        """Give the context back, whichever thread took it; what was current before stays current."""
        before = ctypes.c_void_p()
        self._library.cuCtxGetCurrent(ctypes.byref(before))
        # pycuda gives it back only where it is current or was made, and leaves it on top of the driver's stack
        self._context.push()
        self._context.detach()
        self._library.cuCtxSetCurrent(before)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except self._cuda.Error as error:
            raise BackendError(f"the CUDA driver cannot run this engine: {error}") from error
