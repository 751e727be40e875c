"""Memory that nothing uses, given back to the system."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event


def free_memory() -> None:
    """Give back what nothing uses: graphs that refer to themselves, and what malloc keeps.

    A network's weights are copied at many steps of a build. malloc keeps the freed copies, so without this the next
    step's copies come on top of them in the peak.
    """
    gc.collect()
    trim_heap()


_thawing = Event()
"""Set while a ``quick_collections`` runs that ends what ``pass_over_what_is_alive`` does."""


@contextmanager
def quick_collections() -> Iterator[None]:
    """Let collections in the body look only at what was made in it.

    A process that has imported torch, ONNX and OpenVINO holds 200,000 objects, and looking through them takes a tenth
    of a second each time.
    """
    if gc.get_freeze_count():  # the program, or a build in another thread, has done it
        yield
        return
    _thawing.set()
    pass_over_what_is_alive()
    try:
        yield
    finally:
        _thawing.clear()
        gc.unfreeze()


def pass_over_what_is_alive() -> None:
    """Let the collections to come in ``quick_collections`` pass over what is alive now, such as imported libraries."""
    if _thawing.is_set():
        gc.collect()
        gc.freeze()


def trim_heap() -> None:
    """Give back what malloc keeps; systems without glibc do that in their own way."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
