"""Locks on files that are being written, which tell them from the leftovers of a killed process.

Process ids cannot tell them apart, because every container numbers its processes from 1.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def lock_open_file(handle: int) -> None:
    """Lock an open file; on file systems without locks, leftovers are not removed either."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Yield whether no other process writes ``path``; while the body runs, none can begin to."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(handle)
