"""``rescompile export-server``, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from rescompile.presenting.terminal.serving import print_export
from rescompile.serving.export import Export
from tests.commands import call
from tests.serving.conftest import Exportable

Say = pytest.CaptureFixture[str]


def test_what_was_written_is_printed(exportable: Exportable, tmp_path: Path, capsys: Say) -> None:
    words = ("export-server", exportable(), "--server", "triton", "--output", tmp_path / "models")
    assert call(*words, "--instances", 2, "--max-batch", 8) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:5] == [
        f"repository  {tmp_path / 'models'}",
        "server      NVIDIA Triton Inference Server",
        "model       residual-fp32, version 1, on openvino",
        "batch       up to 8 images",
        "engine      passed its limits",
    ]
    assert any(line.startswith("file        residual-fp32/config.pbtxt (") for line in shown)
    start = (
        "start       docker run --rm -p 8000:8000 -v {} $TRITON_IMAGE tritonserver --model-repository=/models"
    )
    assert shown[-1] == start.format(f"{tmp_path / 'models'}:/models:ro")


def test_the_line_that_starts_the_server_fits_the_engine(tmp_path: Path, capsys: Say) -> None:
    exported = Export(
        server="triton", name="n", backend="tensorrt", max_batch_size=1, engine_sha256="", engine_passed=True,
        notes=(), files={},
    )  # fmt: skip
    for server, backend, words in (
        ("triton", "tensorrt", "-p 8000:8000 --gpus all -v '"),
        ("openvino", "openvino", "openvino/model_server:latest --config_path /models/config.json"),
    ):
        print_export(msgspec.structs.replace(exported, server=server, backend=backend), tmp_path / "a b")
        assert words in capsys.readouterr().out.splitlines()[-1]
    print_export(msgspec.structs.replace(exported, backend="python"), tmp_path)
    assert "docker" not in capsys.readouterr().out, "that needs an image of the user's own"


def test_json_is_the_record(exportable: Exportable, tmp_path: Path, capsys: Say) -> None:
    output = tmp_path / "models"
    words = (
        "export-server",
        exportable(passed=False),
        "--server",
        "openvino",
        "--output",
        output,
        "--name",
        "n",
    )
    assert call(*words, "--force", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((output / "export.json").read_bytes())
    assert call(*words, "--force") == 0
    assert "engine      FAILED its limits" in capsys.readouterr().out


@pytest.mark.parametrize(
    "extra",
    [
        ("--server", "apache"),
        ("--server", "triton", "--instances", "0"),
        ("--server", "triton", "--max-batch", "0"),
    ],
)
def test_wrong_usage_is_exit_2(extra: tuple[str, ...], tmp_path: Path) -> None:
    assert call("export-server", tmp_path, "--output", tmp_path / "r", *extra) == 2
