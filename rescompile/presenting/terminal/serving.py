"""Terminal output of ``rescompile export-server``: one fact a line, then the files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rescompile.presenting.terminal.table import columns

if TYPE_CHECKING:
    from rescompile.serving.export import Export


def print_export(exported: Export, path: Path) -> None:
    """Print what the repository at ``path`` holds."""
    rows = [
        ("repository", str(path)),
        ("server", exported.server_name),
        ("model", f"{exported.name}, version 1, on {exported.backend}"),
        ("batch", f"up to {exported.max_batch_size} images"),
        ("engine", "passed its limits" if exported.engine_passed else "FAILED its limits"),
        *(("note", note) for note in exported.notes),
        *(("file", f"{name} ({digest.bytes:,} bytes)") for name, digest in exported.files.items()),
    ]
    print(*columns(rows), sep="\n")
