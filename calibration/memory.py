"""Memory that nothing uses, given back to the system."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def free_memory() -> None:
    """Give back what nothing uses: graphs that refer to themselves, and what malloc keeps.

    A network's weights are copied at many steps of a build. malloc keeps the freed copies, so without this the next
    step's copies come on top of them in the peak.
    """
    gc.collect()
    trim_heap()


def trim_heap() -> None:
    """Give back what malloc keeps; systems without glibc do that in their own way."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
