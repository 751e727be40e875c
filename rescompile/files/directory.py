"""A directory that appears complete or not at all."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from rescompile.files.locks import held, lock_open_file
from rescompile.files.output_checks import refuse_existing
from rescompile.files.refusals import writing
from rescompile.files.renaming import put, sibling, sync
from rescompile.manifest import MANIFEST

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|replaced)-(\d+-)?[0-9a-f]{8}")


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
        refuse_existing(self.target, force=True)


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
        refuse_existing(target, force=force, known_by=known_by)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial, lock = _new_directory(target)
        try:
            staging = Staging(partial, target)
            with writing(partial):
                yield staging
            _flush(partial)
            put(partial, staging.target, force=force or staging.target != target, known_by=known_by)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            os.close(lock)


def _new_directory(target: Path) -> tuple[Path, int]:
    """A new directory beside ``target``, and a descriptor that holds its lock."""
    while True:
        partial = sibling(target, "partial")
        partial.mkdir()
        with suppress(
            FileNotFoundError
        ):  # another process may have taken it for a leftover until it is locked
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            lock_open_file(lock)
            if partial.exists():
                return partial, lock
            os.close(lock)


def _flush(directory: Path) -> None:
    """Force everything in ``directory`` to the disk before it is renamed."""
    for path in [*directory.rglob("*"), directory]:
        sync(path)


def _clean_up(target: Path) -> None:
    """Remove the leftovers of killed processes that built ``target``; bring back what they had moved away."""
    if not target.parent.is_dir():
        return
    for path in sorted(target.parent.iterdir()):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or match["name"] != target.name or path.is_symlink() or not path.is_dir():
            continue
        with held(path) as alone:
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
