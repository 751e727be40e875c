"""The operating system's refusal to write, as one sentence for the user."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rescompile.errors import OutputError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "read-only disk",
    errno.ENOTDIR: "part of the path is a file",
    errno.EEXIST: "part of the path is a file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.ENOENT: "its folder does not exist",
    errno.EIO: "input/output error: the disk or its connection fails",
}


@contextmanager
def writing(path: Path, *, needed: int | None = None) -> Iterator[None]:
    """Turn the operating system's refusal to write ``path`` into one sentence.

    ``needed`` is the number of bytes to be written, where it is known.

    Raises:
        OutputError: the disk is full, or ``path`` may not be written.
    """
    try:
        yield
    except OSError as error:
        sentence = _refusal(path, error, needed)
        if sentence is None:
            raise
        raise OutputError(sentence) from error


def check_room(directory: Path, needed: int) -> None:
    """Write ``needed`` bytes into ``directory`` and remove them, for libraries that hide why a write failed.

    Raises:
        OutputError: they do not fit, or may not be written.
    """
    probe = directory / f".room-{secrets.token_hex(4)}"
    with writing(directory, needed=needed):
        try:
            with probe.open("xb") as stream:
                for start in range(0, needed, 1 << 20):
                    stream.write(bytes(min(1 << 20, needed - start)))
                stream.flush()
                os.fsync(stream.fileno())
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)


def _refusal(path: Path, error: OSError, needed: int | None) -> str | None:
    """The sentence for the user, or None where ``error`` is not a refusal to write."""
    if error.errno in _FULL:
        limit = (
            "the file size limit of this process is reached" if error.errno == errno.EFBIG else "disk full"
        )
        wanted = f", {needed:,} bytes needed" if needed is not None else ""
        return f"{limit} at {path}: {_free_bytes(path):,} bytes free{wanted}; make room or write to another place"
    place = path if error.filename is None else Path(os.fsdecode(error.filename))
    reason = _REFUSED.get(error.errno or 0)
    if reason is None or not _belongs(place, path):
        return None
    return f"{place} cannot be written ({reason}); write to another place or change that"


def _belongs(place: Path, path: Path) -> bool:
    """Whether an error at ``place`` comes from writing ``path``, and not from reading another file meanwhile."""
    return (
        place == path
        or path in place.parents
        or place in path.parents
        or (place.parent == path.parent and place.name.startswith(f".{path.name}."))
    )


def _free_bytes(path: Path) -> int:
    existing = next((parent for parent in (path, *path.parents) if parent.exists()), Path("/"))
    return shutil.disk_usage(existing).free
