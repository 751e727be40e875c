"""The graph for Triton Inference Server gives the engine's answers without being told the precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13 as ops

from rescompile.backends.cpu.lowering import lower
from rescompile.backends.openvino.compile import compile_model
from rescompile.serving import bfloat16_check, openvino_graph
from rescompile.serving.openvino_graph import write_precise
from tests.backends.cpu.test_lowering import side_by_side
from tests.backends.engines import taking_pixels
from tests.backends.graphs import residual_net, sample_images
from tests.graph.conftest import folded, images, int8, with_zero_points
from tests.graph.described_variants import images as variant_images
from tests.graph.described_variants import opened, quantized
from tests.serving.triton_backend import as_triton_compiles, with_batch

TRITON_SETTINGS = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)

CASES: dict[str, Any] = {
    "fp32": lambda: (residual_net("fp32"), sample_images(4)),
    "fp16": lambda: (residual_net("fp16"), sample_images(4)),
    "int8": lambda: (residual_net("int8"), sample_images(4)),
    "fp32 of pixels": lambda: (taking_pixels(residual_net("fp32")), PIXELS),
    "int8 of pixels": lambda: (taking_pixels(residual_net("int8")), PIXELS),
    "fp32 with a max pool": lambda: (folded("resnet18"), images("resnet18")),
    "fp32 with padded skips": lambda: (folded("resnet20-cifar"), images("resnet20-cifar")),
    "int8 with a max pool": lambda: (int8("resnet18"), images("resnet18")),
    "int8 with projected skips": lambda: (int8("resnet20-cifar", "B"), images("resnet20-cifar")),
    "int8 with a minimum behind a join": lambda: side_by_side("upper bound"),
    "int8 with a ReLU and a minimum behind a join": lambda: side_by_side("ReLU6"),
    "int8 with a lower bound behind a join": lambda: side_by_side("bounds on both sides of 0"),
    "int8 of full range": lambda: (with_zero_points("resnet20-cifar"), images("resnet20-cifar")),
}


@pytest.mark.parametrize("case", CASES)
def test_every_layer_is_marked_and_the_answers_are_the_engines(case: str, tmp_path: Path) -> None:
    model, batch = CASES[case]()
    plain, precise = _engine(model, batch, tmp_path), tmp_path / "precise.xml"
    write_precise(ov.Core().read_model(plain), precise)
    layers = ElementTree.parse(precise).getroot().iter("layer")
    computing = [layer for layer in layers if layer.get("type") not in {"Const", "Parameter", "Result"}]
    marks = [layer.findall("rt_info/attribute[@name='precise']") for layer in computing]
    assert computing
    assert all(len(found) == 1 for found in marks)
    engine = compile_model(plain)
    expected = engine([batch])[0]
    compiled = as_triton_compiles(precise, len(batch), TRITON_SETTINGS)
    np.testing.assert_allclose(compiled([batch])[0], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert list(compiled.output(0).get_partial_shape()) == list(expected.shape)
    assert compiled.output(0).get_names() == engine.output(0).get_names()


@pytest.mark.parametrize(("case", "hidden"), [("int8", True), ("int8 of pixels", True), ("fp32", False)])
def test_layers_of_an_int8_graph_do_not_see_the_batch_size_that_the_server_sets(
    case: str, hidden: bool, tmp_path: Path
) -> None:
    model, batch = CASES[case]()
    write_precise(ov.Core().read_model(_engine(model, batch, tmp_path)), tmp_path / "precise.xml")
    served = with_batch(tmp_path / "precise.xml", 4)
    convolutions = [node for node in served.get_ops() if node.get_type_name() == "Convolution"]
    assert {node.output(0).get_partial_shape()[0].is_dynamic for node in convolutions} == {hidden}
    assert served.input(0).get_partial_shape()[0] == served.output(0).get_partial_shape()[0] == 4


@pytest.mark.parametrize("value", [np.float32(1), np.float32("nan"), np.float32("-inf"), np.uint8(255)])
def test_the_hidden_zero_is_zero_for_every_value(value: Any) -> None:
    given = ops.parameter([-1, 2], value.dtype)
    compiled = compile_model(ov.Model([openvino_graph._hidden_zero(given)], [given]))
    assert compiled([np.full((3, 2), value)])[0].tolist() == [0]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_plain_graph_needs_the_hint_where_a_cpu_has_bfloat16(precision: str, tmp_path: Path) -> None:
    """Without this, the tests above would not show what the marks are for."""
    model, batch = CASES[precision]()
    plain = _engine(model, batch, tmp_path)
    compiled = as_triton_compiles(plain, len(batch), TRITON_SETTINGS)
    if compiled.get_property("INFERENCE_PRECISION_HINT").to_string() != "bf16":
        pytest.skip("this CPU cannot compute in bfloat16: OpenVINO infers in f32 in any case")
    assert np.abs(compiled([batch])[0] - compile_model(plain)([batch])[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("sk", "fp32"),  # a softmax inside, and reshapes in a row
        ("sk", "int8"),
        ("context", "fp32"),  # resizes
        ("eca", "fp32"),  # a pool that is flattened for something else than a classifier
        ("leaky", "fp32"),
        ("mlp-head", "fp32"),  # a classifier that is not the last layer
        ("vgg", "fp32"),  # a classifier behind a flattening without a pool
    ],
)
def test_operators_of_other_networks_stay_in_f32(name: str, precision: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path).graph if precision == "fp32" else quantized(name, tmp_path)
    batch = variant_images(name, 2)
    plain, precise = _engine(model, batch, tmp_path), tmp_path / "precise.xml"
    write_precise(ov.Core().read_model(plain), precise)
    expected = compile_model(plain)([batch])[0]
    assert bfloat16_check.note(precise, batch, plain) is None
    found = as_triton_compiles(precise, len(batch), TRITON_SETTINGS)([batch])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


SQUARE = np.random.default_rng(3).standard_normal((48, 48), dtype=np.float32)


@pytest.mark.parametrize(
    "head",
    [
        lambda x: ops.matmul(_flat(x, 0, -1), SQUARE, False, True),
        lambda x: ops.matmul(_flat(x, 0, -1), SQUARE, False, False),  # weights the other way round
        lambda x: ops.matmul(_flat(x, 48, -1), SQUARE, True, True),
        lambda x: ops.matmul(_flat(x, -1, 96), np.tile(SQUARE, (2, 2)), False, True),  # images in pairs
        lambda x: ops.matmul(_flat(x, -1, 16), SQUARE[:16, :16], False, True),  # each image in three
        lambda x: ops.matmul(_flat(x, 0, 3, 16), SQUARE[:16, :16], False, True),
        lambda x: ops.softmax(_flat(x, 0, 3, 16), -2),
        lambda x: ops.prelu(x, np.array([0.1, 0.5, 2.0], np.float32)),
        lambda x: ops.prelu(x, np.array([-0.3], np.float32)),
        lambda x: ops.add(ops.unsqueeze(ops.squeeze(ops.reduce_mean(x, [2, 3], True), [2, 3]), [1]), np.float32(1)),
    ],
)  # fmt: skip
def test_rewritten_operators_compute_the_same(head: Any, tmp_path: Path) -> None:
    given = ops.parameter([-1, 3, 4, 4], np.float32)
    ov.save_model(ov.Model([head(given)], [given]), tmp_path / "plain.xml", compress_to_fp16=False)
    write_precise(ov.Core().read_model(tmp_path / "plain.xml"), tmp_path / "precise.xml")
    images = np.random.default_rng(4).standard_normal((4, 3, 4, 4), dtype=np.float32)
    expected, found = (compile_model(tmp_path / f"{name}.xml")([images])[0] for name in ("plain", "precise"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def _flat(images: Any, *shape: int) -> Any:
    return ops.reshape(images, np.array(shape, np.int64), special_zero=True)


def _engine(model: onnx.ModelProto, batch: NDArray[Any], folder: Path) -> Path:
    """``model.xml`` as a build writes it, for 1 to 8 images."""
    read = ov.Core().read_model(lower(model).SerializeToString())
    read.reshape(ov.PartialShape([ov.Dimension(1, 8), *batch.shape[1:]]))
    ov.save_model(read, folder / "plain.xml", compress_to_fp16=False)
    return folder / "plain.xml"
