"""Rewrites are executed, and what the executor cannot do is found before any method needs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rescompile.backends.base import Int8Support
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.calibrate import calibrate
from rescompile.building.method_notes import notes_on_pins, notes_on_rounding
from rescompile.building.opening import open_source
from rescompile.building.quantize import quantize
from rescompile.building.rewrites import check_rewrite, executor_problem
from rescompile.building.source import Source
from rescompile.config import CalibrationConfig, ModelConfig, PreprocessOptions
from rescompile.errors import GraphError
from rescompile.graph.full_range import fold_zero_points
from rescompile.metrics import relative_rms
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
    fast = replace(calibrated.recipe, rounding="nearest")
    (note,) = notes_on_rounding(source.graph, fast, has_moments=False)
    assert "is not an ungrouped convolution" in note
    assert not notes_on_rounding(source.graph, fast, has_moments=True)


def one_sided() -> onnx.ModelProto:
    """Blocks whose convolutions pad behind the image alone, as Keras's 'same' at stride 2, one of them grouped."""
    writer = Writer((3, 16, 16))
    x = writer.relu(writer.conv("x", 8, pads=[0, 0, 1, 1], stride=2))
    for pads, group in (([0, 0, 2, 2], 1), ([2, 1, 0, 1], 4)):
        inner = writer.relu(writer.conv(x, 8, pads=pads, group=group))
        x = writer.relu(writer.sum(writer.conv(inner, 8, pads=[0, 2, 2, 0]), x))
    return writer.done(writer.head(x))


@pytest.mark.parametrize("channels", ["never", "free"])
@pytest.mark.parametrize("effort", ["fast", "balanced", "best"])
def test_one_sided_padding_and_groups_in_all_methods(
    tmp_path: Path, photographs: Path, channels: str, effort: str
) -> None:
    source = opened(one_sided(), tmp_path)
    config = CalibrationConfig(images=photographs, effort=effort, full_range=True)  # type: ignore[arg-type]
    calibrated = calibrate(source, config, Silent(), Int8Support("free", channels))  # type: ignore[arg-type]
    wide = list(calibrated.table.levels().values()).count(255)
    assert wide == {"never": 0, "free": 1}[channels]
    others = "a convolution that takes no constant channels" if wide else "changes nothing"
    assert any("256 values" in note and others in note for note in calibrated.notes)
    quantized = quantize(source, calibrated, Silent())
    pixels = np.random.default_rng(1).standard_normal((8, 3, 16, 16), dtype=np.float32)
    exact = reference_session(source.graph.SerializeToString(), optimize=True)(pixels)
    plain, folded = (
        reference_session(graph.SerializeToString(), optimize=False)(pixels)
        for graph in (quantized, fold_zero_points(quantized))
    )
    assert relative_rms(exact, plain) < 0.1
    assert relative_rms(plain, folded) < 0.02
