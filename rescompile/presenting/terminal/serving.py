"""What ``export-server`` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rescompile.presenting.terminal.views import columns
from rescompile.serving.payload import SERVER_NAMES

if TYPE_CHECKING:
    from rescompile.serving.export import Export


def print_export(exported: Export, path: Path) -> None:
    """The repository at ``path``: one fact a line, then its files."""
    rows = [
        ("repository", str(path)),
        ("server", SERVER_NAMES[exported.server]),
        ("model", f"{exported.name}, version 1, on {exported.backend}"),
        ("batch", f"up to {exported.max_batch_size} images"),
        ("engine", "passed its limits" if exported.engine_passed else "FAILED its limits"),
        *(("note", note) for note in exported.notes),
        *(("file", f"{name} ({digest.bytes:,} bytes)") for name, digest in exported.files.items()),
    ]
    print("\n".join(columns(rows)))
