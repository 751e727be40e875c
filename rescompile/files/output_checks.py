"""Checks of an output's path, before any work."""

from __future__ import annotations

import os
from pathlib import Path

from rescompile.errors import OutputError
from rescompile.files.refusals import writing
from rescompile.manifest import MANIFEST

_KINDS = {MANIFEST: "an engine", "export.json": "an exported repository"}
"""File to the kind of directory that holds it; only such directories are ever replaced."""

FAILED = ".failed"
"""Added to the name of an engine directory whose engine misses its limits."""


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
        refuse_existing(path, force=force, known_by=known_by)


def check_failed_directory(path: Path) -> None:
    """Refuse an output beside which its failed form could not be written.

    Raises:
        OutputError: something other than an engine directory has that name.
    """
    target = Path(os.path.abspath(path))  # noqa: PTH100 - as in atomic_directory
    check_output_directory(target.with_name(target.name + FAILED), force=True)


def refuse_existing(target: Path, *, force: bool, known_by: str = MANIFEST) -> None:
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
