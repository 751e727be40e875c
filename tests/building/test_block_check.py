"""Engines are compared with their deployable graphs block by block, whatever the golden answers allow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import rescompile
from rescompile.backends import get_backend
from rescompile.backends.base import BuildRequest
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.block_check import boundaries, check_blocks
from rescompile.building.engine_directory import GOLDEN_TOLERANCE, MOST_GOLDEN_TOLERANCE, Contents
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig, PreprocessOptions
from rescompile.errors import EngineError
from rescompile.graph.shared.editing import read
from rescompile.manifest import Batch, read_manifest
from rescompile.metrics import relative_rms
from rescompile.report import Limits
from rescompile.runtime.golden import read_golden
from rescompile.runtime.inspection import inspect
from tests.graph.described_variants import images, quantized
from tests.graph.variant_blocks import Gate, Residual
from tests.graph.variants import exported, fitted, network

BATCH = Batch(1, 2, 3)
OPENVINO = get_backend("openvino")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variants")


def engine(graph: onnx.ModelProto, directory: Path, batch: Batch = BATCH) -> Path:
    """The OpenVINO payload of ``graph``."""
    onnx.save(graph, directory / "model.onnx")
    shape = (3, 16, 16)
    request = BuildRequest(model=directory / "model.onnx", precision="int8", batch=batch, image_shape=shape)
    OPENVINO.build(request, directory)
    return directory


def changed(graph: onnx.ModelProto, constant: str, factor: float) -> onnx.ModelProto:
    """``graph`` with one constant times ``factor``."""
    made = onnx.ModelProto()
    made.CopyFrom(graph)
    tensor = next(each for each in made.graph.initializer if each.name == constant)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), constant))
    return made


@pytest.mark.parametrize(
    ("constant", "block"),
    [
        ("layer1.0.relu.scale", "layer1.0"),
        ("layer1.0.relu1.scale", "layer1.0"),
        ("layer2.0.conv2.weight.scale", "layer2.0"),
        ("layer2.0.downsample.bias", "layer2.0"),
        ("stem.maxpool1.scale", "stem"),  # whose rounding the lowering moves in front of the pool
        ("fc.weight.scale", "fc"),
    ],
)
def test_a_wrong_constant_is_found_although_end_to_end_nothing_shows(
    constant: str, block: str, folder: Path, tmp_path: Path
) -> None:
    graph, x = quantized("resnet-d", folder), images("resnet-d")
    wrong = changed(graph, constant, 1.03)
    answers = [reference_session(each.SerializeToString(), optimize=False)(x) for each in (graph, wrong)]
    assert relative_rms(*answers) < GOLDEN_TOLERANCE["int8"]
    with pytest.raises(EngineError, match=f"block '{block}' gives other values"):
        check_blocks(engine(wrong, tmp_path), OPENVINO, graph, x)


@pytest.mark.parametrize("batch", [Batch(1, 2, 3), Batch(1, 1, 1), Batch(5, 5, 5)])
def test_a_right_engine_of_any_batch_passes(batch: Batch, folder: Path, tmp_path: Path) -> None:
    graph = quantized("resnet-d", folder)
    made = engine(graph, tmp_path, batch)
    assert check_blocks(made, OPENVINO, graph, images("resnet-d")) == 4


def test_engines_that_are_their_graph_have_nothing_to_compare(folder: Path, tmp_path: Path) -> None:
    graph = quantized("resnet-d", folder)
    assert check_blocks(tmp_path, get_backend("onnxruntime"), graph, images("resnet-d")) == 0


def test_boundaries_lie_where_blocks_meet(folder: Path) -> None:
    found = {each.name: each for each in boundaries(read(quantized("resnet-d", folder)))}
    assert list(found) == ["stem.maxpool1", "layer1.0.relu", "layer2.0.relu", "logits"]
    assert found["stem.maxpool1"].cut == "stem.relu2"
    assert found["layer1.0.relu"].restored == "layer1.0.relu.dequantize"
    assert found["logits"].quantizer is None


@pytest.mark.parametrize(("error", "allowed"), [(0.01, 0.05), (0.2, 0.2), (0.9, MOST_GOLDEN_TOLERANCE)])
def test_an_engine_may_differ_by_the_quantization_error(error: float, allowed: float) -> None:
    config = BuildConfig(model=ModelConfig(model="resnet20-cifar"))
    contents = Contents(
        source=None, config=config, backend=OPENVINO, payload=None, table=None, class_names=None,
        quantization_error=error,
    )  # type: ignore[arg-type]  # fmt: skip
    assert contents.golden_tolerance == allowed
    exact = replace(contents, config=replace(config, precision="fp32"), quantization_error=0.0)
    assert exact.golden_tolerance == GOLDEN_TOLERANCE["fp32"]


def test_a_deep_grouped_network_may_differ_by_its_own_quantization_error(tmp_path: Path) -> None:
    """The images to calibrate on are pale, so the golden photographs are clipped, and quantization changes much."""
    blocks = [*(Residual(16, 16, groups=4) for _ in range(12)), Residual(16, 16, after=Gate(16))]
    path = tmp_path / "deep.onnx"
    onnx.save(exported(fitted(network(*blocks, Residual(16, 32, 2, groups=4))), (1, 3, 16, 16)), path)
    pixels = np.random.default_rng(0).integers(96, 160, (24, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels.repeat(4, 1).repeat(4, 2))
    preprocess = PreprocessOptions(mean=(0.5,) * 3, std=(0.1,) * 3)
    report = rescompile.build(
        BuildConfig(
            model=ModelConfig(onnx=path, preprocess=preprocess),
            calibration=CalibrationConfig(images=tmp_path / "images.npz", effort="fast"),
            limits=Limits(max_relative_rms=1e6), backend="openvino", output=tmp_path / "engine",
        )
    )  # fmt: skip
    assert report.engine_executed
    reasons = {entry.reason: entry.nodes for entry in inspect(tmp_path / "engine").floating}
    assert reasons == {entry.reason: entry.nodes for entry in report.lint.floating}
    assert reasons["a gate, which sees one pixel"] == ("layer1.12.gate1", "layer1.12.gate2")
    assert reasons["Sigmoid"] == ("layer1.12.sigmoid1",)
    manifest = read_manifest(tmp_path / "engine")
    x, (golden,) = read_golden(tmp_path / "engine", manifest)
    exact = reference_session(tmp_path / "engine/reference.onnx", optimize=True)(x)
    error = relative_rms(exact, golden)
    assert error > GOLDEN_TOLERANCE["int8"]
    assert manifest.golden_relative_rms == pytest.approx(min(error, MOST_GOLDEN_TOLERANCE), rel=1e-3)
    with rescompile.load(tmp_path / "engine") as loaded:
        assert relative_rms(golden, loaded(x)) <= manifest.golden_relative_rms
