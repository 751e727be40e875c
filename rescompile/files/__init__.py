"""Files and directories that appear complete or not at all; their hashes; and one sentence for a full disk.

A file or directory is written under a hidden name beside its target, flushed and renamed. Its writer holds a lock on
it. An old directory changes places with the new one in one step, and is removed afterwards.
"""

from rescompile.files.digests import sha256_of
from rescompile.files.directory import Staging, atomic_directory
from rescompile.files.one_file import atomic_stream, atomic_write, sweep
from rescompile.files.output_checks import (
    FAILED,
    check_failed_directory,
    check_output_directory,
    check_output_file,
)
from rescompile.files.refusals import check_room, writing

__all__ = [
    "FAILED",
    "Staging",
    "atomic_directory",
    "atomic_stream",
    "atomic_write",
    "check_failed_directory",
    "check_output_directory",
    "check_output_file",
    "check_room",
    "sha256_of",
    "sweep",
    "writing",
]
