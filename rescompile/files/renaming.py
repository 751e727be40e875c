"""A finished directory gets its name; an old one that has it changes places with it in one step.

Where the system cannot exchange two names, the old one is first moved to ``.NAME.replaced-RANDOM``, from where the next
writer brings it back if this one is killed in between.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from pathlib import Path

from rescompile.errors import OutputError
from rescompile.files.locks import held
from rescompile.files.output_checks import refuse_existing

_TRIES = 8
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST}


def sibling(target: Path, kind: str) -> Path:
    """A new hidden name beside ``target``: ``.NAME.KIND-RANDOM``."""
    return target.with_name(f".{target.name}.{kind}-{secrets.token_hex(4)}")


def sync(path: Path) -> None:
    """Force a file, or the names in a directory, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def put(partial: Path, target: Path, *, force: bool, known_by: str) -> None:
    """Give ``partial`` the name ``target``; what had that name before stays until then and is removed.

    Another process may do the same at this moment; this one then looks again and retries.
    """
    for _ in range(_TRIES):
        refuse_existing(target, force=force, known_by=known_by)
        try:
            if not force or not target.exists():  # a rename never takes the place of what is not empty
                partial.rename(target)
            elif exchange(partial, target):
                _refuse_what_came(partial, target, known_by=known_by)
            else:
                _replace_in_two_steps(partial, target)
        except OSError as error:
            if error.errno in _OCCUPIED or (error.errno == errno.ENOENT and partial.exists()):
                continue
            raise
        sync(target.parent)
        return
    raise OutputError(
        f"{target} is being replaced by other processes all the time; wait for them, and try again"
    )


def exchange(one: Path, other: Path) -> bool:
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
        refuse_existing(partial, force=True, known_by=known_by)
    except OutputError:
        exchange(partial, target)
        refuse_existing(target, force=True, known_by=known_by)
        raise


def _replace_in_two_steps(partial: Path, target: Path) -> None:
    """Move ``target`` away and ``partial`` in its place; the old one comes back if that fails."""
    replaced = sibling(target, "replaced")
    with held(target):  # so that no other process brings it back in between
        target.rename(replaced)
        try:
            partial.rename(target)
        except BaseException:
            replaced.rename(target)
            raise
    shutil.rmtree(replaced, ignore_errors=True)
