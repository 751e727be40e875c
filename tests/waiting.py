"""Waiting for what another thread or process does, however slow the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(happened: Callable[[], bool], *, seconds: float = 120.0) -> None:
    """Wait until ``happened`` is true.

    Raises:
        AssertionError: it is not after ``seconds``.
    """
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"it has not happened within {seconds:g} s"
        time.sleep(0.01)
