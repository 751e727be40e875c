"""An engine that is replaced while it is loaded: names and answers are those of one engine, never of two."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from rescompile import cache, engine_files
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.errors import BackendError, EngineError
from rescompile.manifest import GRAPH, read_manifest
from rescompile.runtime import integrity
from rescompile.runtime.integrity import read_engine
from rescompile.runtime.loading import load
from tests.backends.engines import make_engine
from tests.backends.graphs import sample_images


@pytest.fixture(params=["openvino", "onnxruntime"])
def two(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two engines whose names and answers differ, and an empty cache of compiled engines."""
    monkeypatch.delenv(cache.SWITCH, raising=False)
    monkeypatch.setenv("RESCOMPILE_CACHE", str(tmp_path / "cache"))
    folders = (tmp_path / "a", tmp_path / "b")
    for folder, precision in zip(folders, ("fp32", "int8"), strict=True):
        found = make_engine(folder, precision, backend=request.param)
        write_hashed_manifest(folder, msgspec.structs.replace(found, model=f"network-{folder.name}"))
    return folders


def before_open(number: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Call ``act`` before the ``number``-th file of an engine is opened; the list has the number of each that was."""
    opened: list[int] = []
    original = engine_files.open_plain

    def hooked(path: Path, **rest: Any) -> Any:
        opened.append(len(opened))
        if len(opened) == number:
            act()
        return original(path, **rest)

    for module in ("rescompile.engine_files", "rescompile.manifest", "rescompile.runtime.integrity"):
        monkeypatch.setattr(f"{module}.open_plain", hooked)
    return opened


@pytest.mark.parametrize("removed", [False, True])
def test_whenever_it_is_replaced_one_engine_is_loaded_and_not_a_mixture(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    images, expected = sample_images(3), {}
    for folder in two:
        with load(folder, verify=False) as engine:
            expected[engine.manifest.model] = engine(images)
    seen = set()
    number = 0
    while True:
        number += 1
        target = tmp_path / "engine"
        shutil.copytree(two[0], target)

        def replace(target: Path = target) -> None:
            target.rename(tmp_path / "old")
            shutil.copytree(two[1], tmp_path / "new")
            (tmp_path / "new").rename(target)
            if removed:
                shutil.rmtree(tmp_path / "old")

        with monkeypatch.context() as patched:
            opened = before_open(number, replace, patched)
            with load(target) as engine:
                np.testing.assert_array_equal(engine(images), expected[engine.manifest.model])
                seen.add(engine.manifest.model)
        # what was kept for later is right, too
        for folder in two:
            with load(folder) as engine:
                np.testing.assert_array_equal(engine(images), expected[engine.manifest.model])
        for rest in (target, tmp_path / "old"):
            shutil.rmtree(rest, ignore_errors=True)
        if len(opened) < number:
            break
    assert number > 5
    assert seen == ({"network-a", "network-b"} if removed else {"network-a"})


def test_an_engine_that_is_replaced_all_the_time_ends_in_one_sentence(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "_was_replaced", lambda *_: True)
    (two[0] / "golden.npz").unlink()
    with pytest.raises(EngineError, match="is missing, although the manifest lists it"):
        read_engine(two[0])


def test_what_was_hashed_is_what_is_used(two: tuple[Path, Path]) -> None:
    checked = read_engine(two[0], also=(GRAPH,))
    before = checked.files.read(GRAPH)
    (two[0] / GRAPH).write_bytes(b"another")
    assert checked.files.read(GRAPH) == before
    with pytest.raises(EngineError, match="the manifest does not list it"):
        checked.files.read("notes.txt")


def test_weights_in_another_file_are_refused_and_not_looked_for(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime would read them from the working directory, and no hash would cover them."""
    import onnx
    from onnx.external_data_helper import convert_model_to_external_data

    if read_manifest(two[0]).backend != "onnxruntime":
        pytest.skip("its payload is not ONNX")
    proto = onnx.load(two[0] / GRAPH)
    convert_model_to_external_data(proto, location="weights.bin", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    onnx.save(proto, "outside.onnx")
    assert Path("weights.bin").is_file()
    (two[0] / GRAPH).write_bytes(Path("outside.onnx").read_bytes())
    write_hashed_manifest(two[0], read_manifest(two[0]))
    with pytest.raises(BackendError, match=r"weights in another file, 'weights\.bin'"):
        load(two[0])
