"""The user's cache directory, and the compiled engines in it, which are checked by digest whenever they are read.

A compiled engine is stored as ``<SHA-256 of the content, 32 bytes><content>``, in a file named by a key of everything
that it depends on. A file that is damaged, or that cannot be read or written, counts as missing. So does one that
another user could have written, because a compiled engine is code: the folder and its files must belong to this user or
to root, and other users may not write them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rescompile.files import atomic_stream, sweep

SWITCH = "RESCOMPILE_ENGINE_CACHE"
"""Environment variable that switches the cache of compiled engines off: ``off`` or ``0``."""
MOST_BYTES = 2 * 2**30
"""Most bytes of all compiled engines together; the least recently used are removed first."""
_DIGEST_BYTES = 32
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_directory() -> Path:
    """RESCOMPILE_CACHE, else rescompile under XDG_CACHE_HOME, else ~/.cache/rescompile."""
    own = os.environ.get("RESCOMPILE_CACHE")
    if own:
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # the XDG specification says to ignore a relative path
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "rescompile"


def key_of(parts: Iterable[str]) -> str:
    """One name for all ``parts``, in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def compiled_engines(folder: Path | None = None) -> CompiledEngines | None:
    """The compiled engines in ``folder``, or in the user's cache; None where the user has switched them off."""
    if os.environ.get(SWITCH, "").lower() in {"off", "0"}:
        return None
    return CompiledEngines(folder or cache_directory() / "engines")


@dataclass(frozen=True)
class CompiledEngines:
    """A folder of compiled engines."""

    folder: Path

    def read(self, key: str) -> bytes | None:
        """The content stored for ``key``; None where there is none, or where it is damaged."""
        path = self._path(key)
        try:
            stored = _own_bytes(path)
        except OSError:
            return None
        digest, content = stored[:_DIGEST_BYTES], stored[_DIGEST_BYTES:]
        with suppress(OSError):
            if hashlib.sha256(content).digest() == digest:
                os.utime(path)
                return content
            path.unlink()
        return None

    def write(self, key: str, content: bytes) -> None:
        """Store ``content`` for ``key``, completely or not at all; nothing happens where it cannot be written."""
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.folder.stat()
            if status.st_uid == os.geteuid() and status.st_mode & _OTHERS_WRITE:
                self.folder.chmod(0o700)
            # the digest finds a cut file
            with atomic_stream(self._path(key), durable=False, mode=0o600) as stream:
                stream.write(hashlib.sha256(content).digest())
                stream.write(content)
            self._prune()

    def forget(self, key: str) -> bool:
        """Remove the content stored for ``key``; returns whether it is gone."""
        with suppress(OSError):
            self._path(key).unlink(missing_ok=True)
        return not self._path(key).exists()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.blob"

    def _prune(self) -> None:
        sweep(self.folder)
        found = [(path.stat(), path) for path in self.folder.glob("*.blob")]
        total = 0
        for status, path in sorted(found, key=lambda one: -one[0].st_mtime):
            total += status.st_size
            if total > MOST_BYTES:
                path.unlink(missing_ok=True)


def _own_bytes(path: Path) -> bytes:
    """The contents of a plain file that only this user or root can have written; never waits for a pipe.

    Raises:
        OSError: it cannot be read.
        PermissionError: another user could have written it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as stream:
        for status in (os.fstat(descriptor), path.parent.stat()):
            if status.st_uid not in {0, os.geteuid()} or status.st_mode & _OTHERS_WRITE:
                raise PermissionError(f"{path} could have been written by another user")
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise PermissionError(f"{path} is not a plain file")
        return stream.read()
