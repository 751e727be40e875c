"""Files and directories that appear complete or not at all; their hashes; and one sentence for a full disk.

A file or directory is written under a hidden name beside its target, flushed and renamed. Its writer holds a lock on
it, which distinguishes the leftovers of a killed process from the work of a live one; process numbers would not, as
containers number their processes alike. An old directory changes places with the new one in one step, and is removed
afterwards. Where the system cannot exchange two names, the old one is first moved to ``.NAME.replaced-RANDOM``, from
where the next writer brings it back if this one is killed in between.
"""

from __future__ import annotations

import ctypes
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
    errno.EIO: "input/output error: the disk or its connection fails",
}
_KINDS = {MANIFEST: "an engine", "export.json": "an exported repository"}
"""File to the kind of directory that holds it; only such directories are ever replaced."""
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|replaced)-(\d+-)?[0-9a-f]{8}")
_LEFTOVER_FILE = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}")
_TRIES = 8
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST}


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
                with suppress(OSError), _held(path) as alone:
                    if alone:
                        path.unlink()


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
        partial, lock = _new_directory(target)
        try:
            staging = Staging(partial, target)
            with writing(partial):
                yield staging
            _flush(partial)
            _put(partial, staging.target, force=force or staging.target != target, known_by=known_by)
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
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(4)}")


def _new_file(path: Path, mode: int) -> tuple[BinaryIO, Path]:
    """A new file beside ``path``, locked as long as it is open."""
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        stream: BinaryIO = open(  # noqa: SIM115 - the caller closes it
            partial, "xb", opener=lambda name, flags: os.open(name, flags, mode)
        )
        _lock(stream.fileno())
        # another process may have taken it for a leftover until it was locked
        if os.fstat(stream.fileno()).st_nlink:
            return stream, partial
        stream.close()


def _new_directory(target: Path) -> tuple[Path, int]:
    """A new directory beside ``target``, and a descriptor that holds its lock."""
    while True:
        partial = _sibling(target, "partial")
        partial.mkdir()
        with suppress(
            FileNotFoundError
        ):  # another process may have taken it for a leftover until it is locked
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            _lock(lock)
            if partial.exists():
                return partial, lock
            os.close(lock)


def _lock(handle: int) -> None:
    """Lock an open file; on file systems without locks, leftovers are not removed either."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX)


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Whether no other process writes ``path``; none can begin while the body runs."""
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


def _put(partial: Path, target: Path, *, force: bool, known_by: str) -> None:
    """Give ``partial`` the name ``target``; what had that name before stays until then and is removed.

    Another process may do the same at this moment; this one then looks again and retries.
    """
    for _ in range(_TRIES):
        _refuse_existing(target, force=force, known_by=known_by)
        try:
            if not force or not target.exists():  # a rename never takes the place of what is not empty
                partial.rename(target)
            elif _exchange(partial, target):
                _refuse_what_came(partial, target, known_by=known_by)
            else:
                _replace_in_two_steps(partial, target)
        except OSError as error:
            if error.errno in _OCCUPIED or (error.errno == errno.ENOENT and partial.exists()):
                continue
            raise
        _sync(target.parent)
        return
    raise OutputError(
        f"{target} is being replaced by other processes all the time; wait for them, and try again"
    )


def _exchange(one: Path, other: Path) -> bool:
    """Exchange the names of two directories in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(one))


def _refuse_what_came(partial: Path, target: Path, *, known_by: str) -> None:
    """Undo an exchange that removed something that must not be replaced and appeared after the last check."""
    try:
        _refuse_existing(partial, force=True, known_by=known_by)
    except OutputError:
        _exchange(partial, target)
        _refuse_existing(target, force=True, known_by=known_by)
        raise


def _replace_in_two_steps(partial: Path, target: Path) -> None:
    """Move ``target`` away and ``partial`` in its place; the old one comes back if that fails."""
    replaced = _sibling(target, "replaced")
    with _held(target):  # so that no other process brings it back in between
        target.rename(replaced)
        try:
            partial.rename(target)
        except BaseException:
            replaced.rename(target)
            raise
    shutil.rmtree(replaced, ignore_errors=True)


def _clean_up(target: Path) -> None:
    """Remove the leftovers of killed processes that built ``target``; bring back what they had moved away."""
    if not target.parent.is_dir():
        return
    for path in sorted(target.parent.iterdir()):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or match["name"] != target.name or path.is_symlink() or not path.is_dir():
            continue
        with _held(path) as alone:
            if not alone:
                continue
            if match["kind"] == "replaced" and not os.path.lexists(target):
                path.rename(target)
            else:
                shutil.rmtree(path, ignore_errors=True)


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
