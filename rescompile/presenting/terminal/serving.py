"""Terminal output of ``rescompile export-server``: one fact a line, the files, and the line that starts the server."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from rescompile.presenting.terminal.table import columns
from rescompile.wording import counted

if TYPE_CHECKING:
    from rescompile.serving.export import Export

_STARTS = {
    "openvino": "docker run --rm -p 8000:8000 -v {volume} openvino/model_server:latest "
    "--config_path /models/config.json --rest_port 8000",
    "triton": "docker run --rm -p 8000:8000 {gpus}-v {volume} $TRITON_IMAGE tritonserver --model-repository=/models",
}
"""Command that serves a repository, by server; docs/how-to/serve.md says what TRITON_IMAGE is."""


def print_export(exported: Export, path: Path) -> None:
    """Print what the repository at ``path`` holds, and how to serve it."""
    rows = [
        ("repository", str(path)),
        ("server", exported.server_name),
        ("model", f"{exported.name}, version 1, on {exported.backend}"),
        ("batch", f"up to {counted(exported.max_batch_size, 'image')}"),
        ("engine", "passed its limits" if exported.engine_passed else "FAILED its limits"),
        *(("note", note) for note in exported.notes),
        *(("file", f"{name} ({digest.bytes:,} bytes)") for name, digest in exported.files.items()),
        *(("start", line) for line in _start(exported, path)),
    ]
    print(*columns(rows), sep="\n")


def _start(exported: Export, path: Path) -> tuple[str, ...]:
    if exported.backend == "python":
        return ()  # needs an image of the user's own, with rescompile in it
    gpus = "--gpus all " if exported.backend == "tensorrt" else ""
    volume = shlex.quote(f"{path.resolve()}:/models:ro")
    return (_STARTS[exported.server].format(volume=volume, gpus=gpus),)
