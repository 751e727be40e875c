"""The manifest covers every file of an engine directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.manifest import Manifest, read_manifest
from rescompile.runtime.loading import load
from tests.backends.engines import make_engine, manifest


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_only_plain_files_are_sealed(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        (tmp_path / "inner").mkdir()
    else:
        (tmp_path / "inner").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="plain files only, not 'inner'"):
        write_hashed_manifest(tmp_path, manifest("fp32", "openvino"))


def test_sealing_again_takes_new_files_in(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    make_engine(folder, backend="onnxruntime")
    (folder / "report.json").write_text("{}")
    before = read_manifest(folder)
    assert isinstance(write_hashed_manifest(folder, before), Manifest)
    assert set(read_manifest(folder).files) == {*before.files, "report.json"}
    load(folder).close()
