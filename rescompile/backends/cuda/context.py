"""The first GPU's primary context, which other CUDA code of the process, such as torch, shares."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

from rescompile.backends.cuda.driver import Cuda
from rescompile.errors import BackendError

DEVICE = 0
"""The GPU that every engine runs on."""


class PrimaryContext:
    """The context, current in a thread only within ``current``. Any thread may use it.

    Raises:
        BackendError: the driver refuses.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._api, self._library = cuda
        with self._translate_errors():
            self._api.init()
            self._context = self._api.Device(DEVICE).retain_primary_context()

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current for the body, and turn the driver's errors in it into a BackendError."""
        with self._translate_errors():
            self._context.push()
            try:
                yield
            finally:
                self._api.Context.pop()

    def detach(self) -> None:
        """Give the context back, whichever thread took it; what was current before stays current."""
        before = ctypes.c_void_p()
        self._library.cuCtxGetCurrent(ctypes.byref(before))
        # pycuda gives it back only where it is current, and leaves it on top of the driver's stack
        self._context.push()
        self._context.detach()
        self._library.cuCtxSetCurrent(before)

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except BackendError:
            raise  # those of ``driver.call`` say all that is known
        except self._api.Error as error:
            raise BackendError(f"the CUDA driver cannot run this engine: {error}") from error
