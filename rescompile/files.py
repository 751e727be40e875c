"""Files and directories that appear complete or not at all; their hashes; and one sentence for a full disk.

A directory is written under a hidden name beside its target (``.NAME.partial-PID-RANDOM``), flushed and renamed. Its
writer holds a lock on it, which distinguishes the leftovers of a killed process from the work of a live one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from rescompile.errors import OutputError
from rescompile.manifest import MANIFEST

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
}
_KINDS = {MANIFEST: "an engine", "export.json": "an exported repository"}
"""File to the kind of directory that holds it; only such directories are ever replaced."""
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|replaced)-(?P<pid>\d+)-[0-9a-f]{8}")


def sha256_of(*paths: Path) -> str:
    """SHA-256 of the contents of all ``paths``, one after the other, as 64 hexadecimal digits.

    Raises:
        OSError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


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


@contextmanager
def atomic_stream(path: Path, *, durable: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A stream whose contents become the file ``path`` when the body ends well, and vanish when it does not.

    A ``durable`` file is on the disk before it gets its name, so a power cut cannot leave a part of it. ``mode`` is
    that of a new file, less the process's umask.

    Raises:
        OSError: the disk is full, or ``path`` may not be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path`` completely or not at all.

    Raises:
        OutputError: the disk is full, or ``path`` may not be written.
    """
    with writing(path, needed=memoryview(data).nbytes), atomic_stream(path) as stream:
        stream.write(data)


def check_output_file(path: Path) -> None:
    """Refuse a file whose folder does not exist, before any work.

    Raises:
        OutputError: its folder does not exist, or ``path`` is a folder itself.
    """
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path.parent} is not a folder; make it, or choose another --output")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file in it as --output")


def check_output_directory(path: Path, *, force: bool, known_by: str = MANIFEST) -> None:
    """Refuse a directory that ``atomic_directory`` would not make or replace, before any work.

    Raises:
        OutputError: ``path`` exists (without ``force``), or may not be replaced.
    """
    with writing(path):
        _refuse_existing(path, force=force, known_by=known_by)


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


@dataclass
class Staging:
    """A directory being filled, and its path when it is complete."""

    folder: Path
    target: Path

    def divert(self, suffix: str) -> None:
        """Add ``suffix`` to the target's name, and replace an earlier result there; the target itself is not made.

        Raises:
            OutputError: something other than an engine directory has that name.
        """
        self.target = self.target.with_name(self.target.name + suffix)
        _clean_up(self.target)
        _refuse_existing(self.target, force=True)


@contextmanager
def atomic_directory(target: Path, *, force: bool = False, known_by: str = MANIFEST) -> Iterator[Staging]:
    """A directory to fill, which becomes ``target`` when the body ends well and vanishes when it does not.

    With ``force``, a directory at ``target`` that is empty or has a file ``known_by`` is replaced; it stays until the
    new one is complete. SIGTERM during the body ends the process by ``SystemExit``, so that it cleans up too.

    Raises:
        OutputError: ``target`` exists (without ``force``), may not be replaced, or cannot be written.
    """
    target = Path(os.path.abspath(target))  # noqa: PTH100 - resolve() would follow a link at the target
    with _terminable(), writing(target):
        _clean_up(target)
        _refuse_existing(target, force=force, known_by=known_by)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = _sibling(target, "partial")
        partial.mkdir()
        lock = os.open(partial, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            staging = Staging(partial, target)
            with writing(partial):
                yield staging
            _flush(partial)
            _refuse_existing(staging.target, force=force or staging.target != target, known_by=known_by)
            _put(partial, staging.target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


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


def _refuse_existing(target: Path, *, force: bool, known_by: str = MANIFEST) -> None:
    """Raise where ``target`` must not be replaced."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir() or target.parent == target:
        raise OutputError(f"{target} is not a directory that can be replaced; choose another --output")
    ours = (target / known_by).is_file() or not any(target.iterdir())
    if not ours:
        raise OutputError(
            f"{target} holds something other than {_KINDS[known_by]} (no {known_by}); choose another --output"
        )
    if not force:
        raise OutputError(f"{target} exists already; pass --force to replace it, or another --output")


def _sibling(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}-{os.getpid()}-{secrets.token_hex(4)}")


def _flush(directory: Path) -> None:
    """Force everything in ``directory`` to the disk before it is renamed."""
    for path in [*directory.rglob("*"), directory]:
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put(partial: Path, target: Path) -> None:
    """Rename ``partial`` to ``target``; the old ``target`` is removed last, and comes back if the rename fails."""
    replaced = _sibling(target, "replaced") if target.exists() else None
    if replaced is not None:
        target.rename(replaced)
    try:
        partial.rename(target)
    except BaseException:
        if replaced is not None:
            replaced.rename(target)
        raise
    _sync(target.parent)
    if replaced is not None:
        shutil.rmtree(replaced, ignore_errors=True)


def _clean_up(target: Path) -> None:
    """Remove the leftovers of dead processes that built ``target``; bring back what they had moved away."""
    if not target.parent.is_dir():
        return
    for path in sorted(target.parent.iterdir()):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or match["name"] != target.name or _alive(int(match["pid"])) or _locked(path):
            continue
        if match["kind"] == "replaced" and not os.path.lexists(target):
            path.rename(target)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _locked(path: Path) -> bool:
    """Whether a process is writing ``path``, perhaps in another container with its own process numbers."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM raise in the main thread, so that ``finally`` blocks run, unless the program handles it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
