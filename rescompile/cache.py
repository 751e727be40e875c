"""The user's cache directory, and compiled engines in it: only ever a shortcut, never trusted without its digest.

A compiled engine is kept as ``<digest of the content, 32 bytes><content>`` in a file named by a key, which names
everything that it depends on. A file that is damaged, or that cannot be read or written, is as good as none.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SWITCH = "RESCOMPILE_ENGINE_CACHE"
"""Environment variable that switches compiled engines off: ``off`` or ``0``."""
MOST_BYTES = 2 * 2**30
"""Of all compiled engines; the ones that were not used for longest go first."""
_DIGEST_BYTES = 32


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
        """What was kept for ``key``; None where nothing was, or where it is damaged."""
        path = self._path(key)
        try:
            stored = path.read_bytes()
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
        """Keep ``content`` for ``key``, whole or not at all; nothing happens where it cannot be written."""
        path = self._path(key)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with partial.open("xb") as stream:
                stream.write(hashlib.sha256(content).digest())
                stream.write(content)
            partial.replace(path)
            self._prune()
        except OSError:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        """Remove what was kept for ``key``."""
        with suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.blob"

    def _prune(self) -> None:
        kept = sorted(
            (
                (found.st_mtime, found.st_size, path)
                for path in self.folder.glob("*.blob")
                if (found := path.stat())
            ),
            reverse=True,
        )
        total = 0
        for _, size, path in kept:
            total += size
            if total > MOST_BYTES:
                path.unlink(missing_ok=True)
