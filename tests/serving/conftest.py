"""Engines whose manifests say what they like: exporting reads files, and runs none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.manifest import REPORT_JSON, Batch, Manifest
from tests.backends.engines import RANGE, make_engine, manifest
from tests.reports import report

Exportable = Callable[..., Path]


@pytest.fixture
def exportable(tmp_path: Path) -> Exportable:
    """Make an engine directory: ``backend`` and ``batch`` in the manifest, with such a payload or a blind one."""

    def make(backend: str = "openvino", batch: Batch = RANGE, *, passed: bool = True, **fields: Any) -> Path:
        folder = tmp_path / "engine"
        make_engine(folder, backend="openvino", batch=batch)
        if backend != "openvino":
            (folder / "model.xml").unlink()
            (folder / "model.bin").unlink()
            for name in ("model.engine", "plan.json", "weights.safetensors"):
                (folder / name).write_bytes(b"of TensorRT, perhaps")
        (folder / REPORT_JSON).write_bytes(report(passed=passed).to_json())
        made: Manifest = manifest("fp32", backend, batch)
        write_hashed_manifest(folder, msgspec.structs.replace(made, **fields))
        return folder

    return make
