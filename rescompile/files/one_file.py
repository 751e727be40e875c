"""A file that appears complete or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from rescompile.files.locks import held, lock_open_file
from rescompile.files.refusals import writing

_LEFTOVER_FILE = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}")


@contextmanager
def atomic_stream(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A stream whose contents become the file ``path`` when the body ends well, and vanish when it does not.

    A ``durable`` file is on the disk before it gets its name, so a power cut cannot leave a part of it. ``mode`` is
    that of a new file, less the process's umask.

    Raises:
        OSError: the disk is full, or ``path`` may not be written.
    """
    sweep(path.parent, path.name)
    stream, partial = _new_file(path, mode)
    try:
        with stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def sweep(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of the file ``name``, or of all files, that they wrote into ``folder``."""
    with suppress(OSError):
        for path in folder.iterdir():
            match = _LEFTOVER_FILE.fullmatch(path.name)
            if match is not None and name in (None, match["name"]) and path.is_file():
                with suppress(OSError), held(path) as alone:
                    if alone:
                        path.unlink()


def atomic_write(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path`` completely or not at all.

    Raises:
        OutputError: the disk is full, or ``path`` may not be written.
    """
    with writing(path, needed=memoryview(data).nbytes), atomic_stream(path) as stream:
        stream.write(data)


def _new_file(path: Path, mode: int) -> tuple[BinaryIO, Path]:
    """A new file beside ``path``, locked as long as it is open."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        stream: BinaryIO = open(  # noqa: SIM115 - the caller closes it
            partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)
        )
        lock_open_file(stream.fileno())
        # another process may have taken it for a leftover until it was locked
        if os.fstat(stream.fileno()).st_nlink:
            return stream, partial
        stream.close()
