"""Mistakes in files and names are found before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rescompile
from calibration.errors import CalibrationError
from rescompile.building import opening
from rescompile.building.early_checks import check_build, check_calibrate
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.errors import RescompileError
from rescompile.manifest import MANIFEST
from rescompile.report import Limits
from rescompile.sources.preprocess_options import PreprocessOptions

Change = Callable[[Path], dict[str, Any]]
MODEL = ModelConfig(depth=50)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with images, and engines that may be and may not be replaced."""
    monkeypatch.chdir(tmp_path)
    for index in range(2):
        (tmp_path / "flat").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"flat/{index}.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "used.failed").mkdir()
    (tmp_path / "used.failed/notes.txt").write_text("mine")
    for name in ("engine", "resnet50-int8-openvino"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text("{}")
    (tmp_path / "table.json").write_text("{}")
    return tmp_path


WRONG: dict[str, Change] = {
    "there is no ResNet of depth 51": lambda _: {"model": ModelConfig(depth=51)},
    "resize 100 is smaller than crop 224": lambda _: {
        "model": replace(MODEL, preprocess=PreprocessOptions(resize=100))
    },
    "no.pth does not exist": lambda at: {"model": ModelConfig(weights=str(at / "no.pth"))},
    "no.onnx does not exist": lambda at: {"model": ModelConfig(onnx=at / "no.onnx")},
    "no.txt does not exist": lambda at: {"model": replace(MODEL, classes=at / "no.txt")},
    "no does not exist: pass a folder": lambda at: {"calibration": CalibrationConfig(images=at / "no")},
    "empty holds no images": lambda at: {"calibration": CalibrationConfig(images=at / "empty")},
    "table.json is not a calibration table": lambda at: {
        "calibration": CalibrationConfig(table=at / "table.json")
    },
    "val does not exist: pass a folder": lambda at: {"validation_set": at / "val"},
    "flat has no labels": lambda at: {
        "validation_set": at / "flat",
        "limits": Limits(max_top1_drop=1.0),
    },
    "engine exists already; pass --force": lambda at: {"output": at / "engine"},
    "flat holds something other than an engine": lambda at: {"output": at / "flat"},
    "resnet50-int8-openvino exists already": lambda _: {"output": None},
    "used.failed holds something other than an engine": lambda at: {"output": at / "used"},
}


@pytest.mark.parametrize("words", WRONG)
def test_mistakes_are_found_before_anything_is_loaded(
    place: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    monkeypatch.setattr(opening, "open_source", None)
    config = BuildConfig(
        **{"model": MODEL, "backend": "openvino", "output": place / "new"} | WRONG[words](place)
    )
    with pytest.raises((RescompileError, CalibrationError), match=words):
        check_build(config)
    with pytest.raises((RescompileError, CalibrationError), match=words):
        rescompile.build(config)


def test_what_is_right_passes(place: Path) -> None:
    config = BuildConfig(
        model=MODEL,
        calibration=CalibrationConfig(images=place / "flat"),
        validation_set=place / "flat",
        backend="openvino",
        output=place / "new",
    )
    check_build(config)
    check_build(replace(config, output=place / "engine", force=True))
    check_build(replace(config, output=None, model=ModelConfig(weights="pretrained", model="resnet20-cifar")))


def test_the_file_to_write_is_checked_first(place: Path) -> None:
    with pytest.raises(RescompileError, match="no is not a folder"):
        check_calibrate(ModelConfig(depth=51), CalibrationConfig(), place / "no/table.json")


def test_the_checks_import_nothing_heavy() -> None:
    program = (
        "import sys; import rescompile.building.early_checks; "
        "print(*{'torch', 'onnx', 'onnxruntime', 'openvino', 'matplotlib'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""
