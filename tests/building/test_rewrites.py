"""Rewrites are executed, and what the executor cannot do is found before any method needs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rescompile.building.calibrate import calibrate, notes_on_pins
from rescompile.building.rewrites import check_rewrite, executor_problem
from rescompile.building.source import Source, open_source
from rescompile.config import CalibrationConfig, ModelConfig, PreprocessOptions
from rescompile.errors import GraphError
from rescompile.progress import Silent
from tests.graph.random_graphs import FAMILIES, Writer


def unknown() -> onnx.ModelProto:
    """A residual network with a sine in it, which PyTorch does not execute here."""
    writer = Writer((3, 16, 16))
    x = writer.relu(writer.conv("x", 8))
    inner = writer.add("Sin", [writer.conv(x, 8)], (8, 16, 16))
    x = writer.relu(writer.sum(writer.conv(inner, 8), x))
    return writer.done(writer.head(x))


def opened(model: onnx.ModelProto, folder: Path) -> Source:
    onnx.save(model, folder / "net.onnx")
    options = PreprocessOptions(mean=(0.5,) * 3, std=(0.25,) * 3)
    return open_source(ModelConfig(onnx=folder / "net.onnx", preprocess=options), Silent())


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    return tmp_path / "images.npz"


def test_a_rewrite_that_changes_answers_is_refused() -> None:
    model = FAMILIES["resnext"]()
    assert check_rewrite(model, model, "nothing was done") is model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    bias = next(entry for entry in changed.graph.initializer if entry.name == "c1")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
    with pytest.raises(GraphError, match=r"a bias was moved, and 'gemm\d+' changed by 0\.\d+"):
        check_rewrite(model, changed, "a bias was moved")


def test_a_rewrite_for_one_image_alone_is_refused() -> None:
    writer = Writer((3, 4, 4))
    x = writer.relu(writer.conv("x", 2))
    right = writer.done(writer.add("Mul", [x, writer.constant(np.ones(1, np.float32))], (2, 4, 4)))
    wrong = onnx.ModelProto()
    wrong.CopyFrom(right)
    planes = np.stack([np.ones((2, 4, 4)), np.full((2, 4, 4), 1.1)]).astype(np.float32)
    wrong.graph.initializer[-1].CopyFrom(numpy_helper.from_array(planes, wrong.graph.initializer[-1].name))
    with pytest.raises(GraphError, match="changed by"):
        check_rewrite(right, wrong, "a factor was added")


def test_what_the_executor_cannot_do_is_named() -> None:
    assert executor_problem(FAMILIES["squeezed"]()) is None
    assert "'sin3' is a Sin, which only ONNX Runtime executes here" in str(executor_problem(unknown()))


def test_an_unknown_operation_falls_back_with_a_note(tmp_path: Path, photographs: Path) -> None:
    source = opened(unknown(), tmp_path)
    config = CalibrationConfig(images=photographs, effort="best")
    calibrated = calibrate(source, config, Silent())
    assert calibrated.recipe.rounding == "nearest"
    assert calibrated.table.method == "mse"
    assert not calibrated.table.factors()
    assert any("is a Sin" in note and "rounded to the nearest" in note for note in calibrated.notes)


def test_notes_say_what_is_pinned_and_why(tmp_path: Path, photographs: Path) -> None:
    source = opened(FAMILIES["mobile"](), tmp_path)
    calibrated = calibrate(source, CalibrationConfig(images=photographs, effort="balanced"), Silent())
    assert any("tensors are not equalized, because of Clip" in note for note in calibrated.notes)
    assert not notes_on_pins(FAMILIES["resnext"](), ["relu1", "relu3"])


def test_an_input_that_a_grouped_convolution_reads_keeps_one_scale(tmp_path: Path, photographs: Path) -> None:
    writer = Writer((3, 16, 16))
    x = writer.relu(writer.conv("x", 24, group=3))
    x = writer.relu(writer.sum(writer.conv(writer.relu(writer.conv(x, 24)), 24), x))
    source = opened(writer.done(writer.head(x)), tmp_path)
    calibrated = calibrate(source, CalibrationConfig(images=photographs, effort="balanced"), Silent())
    assert not calibrated.exact_pixels
    assert any("rounded to one scale" in note and "is grouped" in note for note in calibrated.notes)
    assert calibrated.table.moments() is None
