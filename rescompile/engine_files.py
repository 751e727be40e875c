"""The files of one engine directory, as the bytes that were checked.

A directory may be replaced by a newer engine at any moment, so nothing is opened twice: what was hashed is what is
compiled, tested and copied.
"""

from __future__ import annotations

import hashlib
import os
import stat
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from rescompile.errors import EngineError

ADVICE = "copy or build the engine again"


class OpenFile:
    """A file that stays open, and is closed when nothing refers to this object any more; for any number of threads."""

    def __init__(self, stream: BinaryIO) -> None:
        self._descriptor = os.dup(stream.fileno())
        self._bytes = os.fstat(self._descriptor).st_size
        weakref.finalize(self, os.close, self._descriptor)

    def read(self) -> bytes | None:
        """The whole contents, also where the file was replaced or removed; None where its size has changed."""
        parts, done = [], 0
        while part := os.pread(self._descriptor, 1 << 30, done):
            parts.append(part)
            done += len(part)
        return b"".join(parts) if done == self._bytes else None


class EngineFiles:
    """Contents of files by name; of a directory that is still being built, they are read when they are asked for.

    Args:
        directory: of the engine, for messages.
        contents: what was read and checked; None reads ``directory`` itself.
        digests: SHA-256 of the contents, as far as they are known.
        opened: the files that ``contents`` were read from.
    """

    def __init__(
        self,
        directory: Path,
        contents: Mapping[str, bytes] | None = None,
        digests: Mapping[str, str] | None = None,
        opened: Mapping[str, OpenFile] | None = None,
    ) -> None:
        self.directory, self._contents, self._digests = directory, contents, dict(digests or {})
        self._opened = dict(opened or {})

    def for_later(self) -> EngineFiles:
        """The same files without their contents in memory: they are read again, and must be what they were."""
        if self._contents is None:
            return self
        return EngineFiles(self.directory, {}, self._digests, self._opened)

    def path(self, name: str) -> Path:
        """The path of a file, for messages."""
        return self.directory / name

    def read(self, name: str) -> bytes:
        """The contents of a file.

        Raises:
            EngineError: it is missing or cannot be read, or was changed after it was checked.
        """
        if self._contents is not None:
            if name in self._contents:
                return self._contents[name]
            if name in self._opened:
                return self._read_again(name)
            raise EngineError(f"{self.path(name)} is missing, or the manifest does not list it; {ADVICE}")
        with readable(self.path(name)), open_plain(self.path(name)) as stream:
            return stream.read()

    def _read_again(self, name: str) -> bytes:
        with readable(self.path(name)):
            content = self._opened[name].read()
        known = self._digests.get(name)
        if content is None or (known is not None and hashlib.sha256(content).hexdigest() != known):
            raise EngineError(f"{self.path(name)} was changed while the engine ran; load the engine again")
        return content

    def digest(self, name: str) -> str:
        """SHA-256 of a file's contents, as 64 hexadecimal digits; raises EngineError as ``read`` does."""
        if name not in self._digests or self._contents is None:
            return hashlib.sha256(self.read(name)).hexdigest()
        return self._digests[name]


EngineSource = Path | EngineFiles
"""An engine directory, or what was read from one."""


def files_in(source: EngineSource) -> EngineFiles:
    """The files of ``source``."""
    return source if isinstance(source, EngineFiles) else EngineFiles(source)


def open_plain(path: Path, *, folder: int | None = None) -> BinaryIO:
    """Open a plain file for reading, never through a symbolic link; a pipe is refused and not waited for.

    ``folder`` is the descriptor of an open directory in which the last part of ``path`` is looked up.

    Raises:
        EngineError: it is not a plain file.
        OSError: it cannot be opened.
    """
    name = path if folder is None else path.name
    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        raise _strange(path)
    handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    stream = os.fdopen(handle, "rb")
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # it was exchanged in between
        stream.close()
        raise _strange(path)
    return stream


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an error of reading ``path`` into one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise EngineError(f"{path} is missing; {ADVICE}") from None
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({error.strerror}); check its permissions") from error


def _strange(path: Path) -> EngineError:
    return EngineError(f"{path} is not a regular file (perhaps a symbolic link); {ADVICE}")
