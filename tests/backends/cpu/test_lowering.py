"""The lowered graph computes the deployable graph's integers, in a form that cannot saturate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.scales import scale_of
from rescompile.backends.cpu.lowering import lower
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.openvino.compile import compile_model
from rescompile.errors import BackendError
from rescompile.graph.full_range import fold_zero_points
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.topology import full_range_tensors, quantized_tensors
from rescompile.manifest import CpuForm, Precision
from rescompile.metrics import relative_rms
from tests.backends.graphs import Rest, residual_net, sample_images
from tests.calibration.single_operations import run_onnx
from tests.graph.conftest import folded, int8, with_zero_points
from tests.graph.conftest import images as images_of
from tests.graph.conftest import run as run_graph
from tests.graph.described_variants import images as variant_images
from tests.graph.described_variants import quantized
from tests.graph.random_graphs import Writer
from tests.graph.test_equalize import inner


def run(model: onnx.ModelProto, images: NDArray[Any]) -> NDArray[Any]:
    return reference_session(model.SerializeToString(), optimize=False)(images)


def constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_graphs_stay_as_they_are(precision: Precision) -> None:
    model = residual_net(precision)
    assert lower(model) == model


@pytest.mark.parametrize("rest", [np.float32, np.float16])
@pytest.mark.parametrize("amax_factor", [1.0, 0.3])
def test_logits_stay_the_same(rest: Rest, amax_factor: float) -> None:
    model = residual_net("int8", rest=rest, amax_factor=amax_factor)
    lowered = lower(model)
    onnx.checker.check_model(lowered, full_check=True)
    np.testing.assert_allclose(
        run(lowered, sample_images(4)), run(model, sample_images(4)), rtol=1e-4, atol=1e-3
    )


def test_types_noted_in_the_graph_do_not_contradict_the_new_ones() -> None:
    lowered = lower(onnx.shape_inference.infer_shapes(residual_net("int8")))
    onnx.checker.check_model(lowered, full_check=True)
    assert run(lowered, sample_images(1)).shape == (1, 10)


def test_the_given_graph_is_not_changed() -> None:
    model = residual_net("int8")
    before = model.SerializeToString(deterministic=True)
    lower(model)
    assert model.SerializeToString(deterministic=True) == before


def test_every_activation_before_a_weighted_layer_is_unsigned() -> None:
    model = lower(residual_net("int8"))
    values, makers = constants(model), {name: node for node in model.graph.node for name in node.output}
    weighted = [node for node in model.graph.node if node.op_type in {"Conv", "Gemm"}]
    assert len(weighted) == 7
    for node in weighted:
        assert values[makers[node.input[0]].input[2]].dtype == np.uint8


def test_the_signed_skip_stays_signed() -> None:
    model = lower(residual_net("int8"))
    quantizer = next(node for node in model.graph.node if node.name == "layer2.0.downsample_quantized")
    assert constants(model)[quantizer.input[2]].dtype == np.int8


def test_a_relu_becomes_the_clip_and_the_last_one_stays() -> None:
    kinds = {node.output[0]: node.op_type for node in lower(residual_net("int8")).graph.node}
    assert kinds["layer1.0.relu1"] == "Clip"
    assert kinds["layer2.0.relu"] == "Relu"  # the average pool reads it too, in float


def one_conv(
    weight: NDArray[Any], *, relu: bool = False, group: int = 1, zero_point: int = 0
) -> onnx.ModelProto:
    """images [N, C, 4, 4] -> Q (scale 1) -> conv of int8 ``weight``; integers in, integers out."""
    channels = weight.shape[1] * group
    nodes = [helper.make_node("Relu", ["images"], ["x"])] if relu else []
    nodes += [
        helper.make_node("QuantizeLinear", ["x" if relu else "images", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=0),
        helper.make_node("Conv", ["d", "wd"], ["logits"], name="conv", pads=[1] * 4, group=group),
    ]
    held = {
        "scale": np.float32(1), "zero": np.int8(zero_point), "w": weight,
        "ws": np.ones(len(weight), np.float32), "wz": np.zeros(len(weight), np.int8),
    }  # fmt: skip
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", channels, 4, 4])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    graph = helper.make_graph(nodes, "one", [images], [logits], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def assert_same_integers(found: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal but for the bias of 2**-100 that a layer without one may get."""
    np.testing.assert_array_equal(np.rint(found), expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-99)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), relu=st.booleans(), lowest=st.sampled_from([-128, -127]))
def test_integers_are_equal_for_all_weights_and_inputs(seed: int, relu: bool, lowest: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.integers(lowest, 128, (4, 3, 3, 3)).astype(np.int8)
    images = random.uniform(-160, 160, (2, 3, 4, 4)).astype(np.float32)
    images.flat[:4] = [-128.5, -129, 126.5, 127.5]
    model = one_conv(weight, relu=relu)
    assert_same_integers(run(lower(model), images), run(model, images))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), relu=st.booleans())
def test_no_two_products_can_leave_sixteen_bits(seed: int, relu: bool) -> None:
    random = np.random.default_rng(seed)
    model = lower(one_conv(random.choice(np.array([-128, -127, 0, 127], np.int8), (4, 3, 3, 3)), relu=relu))
    values = constants(model)
    makers = {name: node for node in model.graph.node for name in node.output}
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = values[makers[conv.input[1]].input[0]].astype(int)
    # unsigned activations: 127 where they were positive, 128 where they were negative
    largest = np.array([127] * 3 + [128] * (weight.shape[1] - 3))
    products = np.sort(np.abs(weight) * largest[:, None, None], axis=1)
    assert (products[:, -1] + products[:, -2]).max() <= 2**15 - 1


@pytest.mark.parametrize("form", ["avx2", "vnni"])
def test_a_tensor_of_full_range_is_unsigned_again_and_its_integers_stay(form: CpuForm) -> None:
    graph = fold_zero_points(with_zero_points("resnet50"))
    lowered = lower(graph, form)
    onnx.checker.check_model(lowered, full_check=True)
    names = [
        "layer1.0.relu2.quantize",
        "layer1.0.relu.quantize",
        "layer1.1.relu2.quantize",
    ]
    before, after = (run_graph(each, images_of("resnet50"), outputs=names) for each in (graph, lowered))
    for name in names:
        assert after[name].dtype == np.uint8
        steps = np.abs(before[name].astype(int) + 128 - after[name])
        assert steps.max() <= 1, "fp32 sums are rounded otherwise, so a tie may fall the other way"
        assert steps.mean() < 1e-4


def test_no_two_products_of_a_tensor_of_full_range_can_leave_sixteen_bits() -> None:
    model = lower(fold_zero_points(with_zero_points("resnet50")))
    values, makers = constants(model), {name: node for node in model.graph.node for name in node.output}
    full = {f"{tensor}.dequantize" for tensor in full_range_tensors(folded("resnet50"))} | {"maxpool"}
    doubled = 0
    for node in (node for node in model.graph.node if node.op_type == "Conv"):
        largest = np.abs(values[makers[node.input[1]].input[0]].astype(int)).max()
        name = node.input[0].removesuffix(".twice")
        doubled += name != node.input[0]
        assert 2 * largest * (255 if name in full else 127) <= 2**15 - 1, node.name
    assert doubled == 16 + 15 + 4 + 1, "each 1x1, downsample convolutions too: random weights fill int8"


def test_a_max_pool_reads_integers_and_gives_the_same() -> None:
    model = int8("resnet18")
    lowered = lower(model)
    makers = {name: node for node in lowered.graph.node for name in node.output}
    assert makers["maxpool"].input[0] == "maxpool.dequantize"
    assert makers["maxpool.quantize"].input[0] == "relu1"
    assert makers["layer1.0.conv1"].input[0] == "maxpool"
    names = ["maxpool", "layer1.0.relu1.quantize"]
    found = run_graph(lowered, images_of("resnet18"), outputs=names)
    expected = run_graph(model, images_of("resnet18"), outputs=["maxpool.dequantize", names[1]])
    np.testing.assert_array_equal(found["maxpool"], expected["maxpool.dequantize"])
    np.testing.assert_array_equal(found[names[1]], expected[names[1]])


def test_a_pool_whose_input_or_output_others_read_stays_where_it_is() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(int8("resnet18"))
    for name in ("relu1", "maxpool"):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        changed.graph.node.append(helper.make_node("Sigmoid", [name], ["other"], name="other"))
        changed.graph.output.append(onnx.ValueInfoProto(name="other"))
        makers = {each: node for node in lower(changed).graph.node for each in node.output}
        assert makers["maxpool"].input[0] == "relu1"


def test_behind_a_pool_of_signed_values_signs_are_split() -> None:
    """Two products of an unsigned and a signed byte leave 16 bits where a value is 255 and weights are 127."""
    model = one_conv(np.full((4, 3, 3, 3), 127, np.int8))
    model.graph.node.insert(0, helper.make_node("MaxPool", ["images"], ["x"], kernel_shape=[2, 2]))
    next(node for node in model.graph.node if node.op_type == "QuantizeLinear").input[0] = "x"
    images = np.random.default_rng(0).integers(-127, 128, (2, 3, 4, 4)).astype(np.float32)
    lowered = lower(model)
    (quantize,) = (node for node in lowered.graph.node if node.op_type == "QuantizeLinear")
    assert constants(lowered)[quantize.input[2]].dtype == np.uint8
    assert_same_integers(run_onnx(lowered, images)[0], run_onnx(model, images)[0])


@pytest.mark.parametrize(("largest", "stays"), [(64, True), (65, False)])
def test_a_signed_tensor_stays_where_weights_are_small_and_openvino_is_exact(
    largest: int, stays: bool
) -> None:
    random = np.random.default_rng(0)
    weight = random.integers(-largest, largest + 1, (16, 3, 3, 3)).astype(np.int8)
    weight[:4], weight[4:8] = largest, -largest
    images = random.choice(np.array([-128, -127, 126, 127], np.float32), (4, 3, 4, 4))
    images[0], images[1] = 127, -128
    model = one_conv(weight)
    lowered = lower(model)
    assert any(node.op_type == "Concat" for node in lowered.graph.node) != stays
    compiled = compile_model(lowered.SerializeToString())
    np.testing.assert_array_equal(compiled(images)[0], run(model, images))


@pytest.mark.parametrize("largest", [64, 65])
def test_weights_are_halved_only_where_they_are_large(largest: int) -> None:
    weight = np.full((4, 3, 1, 1), -largest, np.int8)
    weight[0] = largest
    lowered = lower(one_conv(weight, relu=True, zero_point=-128))
    assert any(node.op_type == "Concat" for node in lowered.graph.node) == (largest > 64)
    images = np.random.default_rng(0).uniform(-160, 300, (2, 3, 4, 4)).astype(np.float32)
    images[:, :, 0, 0] = 300
    expected = run(one_conv(weight, relu=True, zero_point=-128), images)
    np.testing.assert_array_equal(np.rint(run(lowered, images)), expected)
    assert expected.max() == 255 * 3 * largest


def test_a_shared_signed_tensor_keeps_its_quantizer_for_other_readers() -> None:
    model = one_conv(np.ones((3, 3, 3, 3), np.int8))
    model.graph.node.append(helper.make_node("Add", ["logits", "d"], ["sum"], name="sum"))
    model.graph.output[0].name = "sum"
    images = np.random.default_rng(0).uniform(-150, 150, (2, 3, 4, 4)).astype(np.float32)
    assert_same_integers(run(lower(model), images), run(model, images))


def test_a_grouped_convolution_of_a_signed_tensor_is_refused() -> None:
    with pytest.raises(BackendError, match=r"'conv' is a grouped INT8 convolution.*--precision fp16"):
        lower(one_conv(np.full((4, 1, 3, 3), 65, np.int8), group=4))


def test_a_grouped_convolution_behind_a_relu_is_fine() -> None:
    model = one_conv(np.ones((4, 1, 3, 3), np.int8), group=4, relu=True)
    images = np.full((1, 4, 4, 4), 200, np.float32)
    assert_same_integers(run(lower(model), images), run(model, images))


@pytest.mark.parametrize(
    ("operation", "inputs", "attributes", "unsigned"),
    [
        ("MaxPool", [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, True),
        ("Pad", ["pads"], {}, True),
        ("Pad", ["pads", "value"], {}, False),
        ("Neg", [], {}, False),
    ],
)
def test_which_operations_keep_a_tensor_from_being_negative(
    operation: str, inputs: list[str], attributes: dict[str, Any], unsigned: bool
) -> None:
    model = one_conv(np.ones((3, 3, 3, 3), np.int8), relu=True)
    model.graph.node.insert(1, helper.make_node(operation, ["x", *inputs], ["y"], **attributes))
    next(node for node in model.graph.node if node.op_type == "QuantizeLinear").input[0] = "y"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.int64), "pads"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(-1, np.float32), "value"))
    lowered = lower(model)
    (quantize,) = (node for node in lowered.graph.node if node.op_type == "QuantizeLinear")
    assert (constants(lowered)[quantize.input[2]].dtype == np.uint8) is unsigned


BEHIND: dict[str, Callable[[Writer, str], str]] = {
    "nothing": lambda writer, x: x,
    "ReLU": lambda writer, x: writer.relu(x),
    "ReLU6": lambda writer, x: writer.clip(x),
    "bounds on both sides of 0": lambda writer, x: clipped(writer, x, -0.5, 1.5),
    "upper bound": lambda writer, x: clipped(writer, x, None, 1.5),
    "lower bound": lambda writer, x: clipped(writer, x, 0.5, None),
    "pool": lambda writer, x: writer.pool(x, "AveragePool"),
    "the same twice": lambda writer, x: writer.concat(x, x),
    "batch norm and ReLU6": lambda writer, x: writer.clip(writer.norm(x)),
}


def clipped(writer: Writer, x: str, low: float | None, high: float | None) -> str:
    ends = ["" if bound is None else writer.constant(np.float32(bound)) for bound in (low, high)]
    return writer.add("Clip", [x, *ends], writer.sizes[x])


def side_by_side(behind: str, *, signed: bool = False) -> tuple[onnx.ModelProto, NDArray[np.float32]]:
    """An INT8 network that has ``behind`` after a Concat of tensors of two scales, and images.

    Where a tensor is ``signed``, weights are within 63, so that every CPU computes it right.
    """
    writer = Writer((8, 6, 6), seed=5)
    first = writer.relu(writer.conv(writer.relu("x"), 8))
    second = writer.conv(first, 8) if signed else writer.relu(writer.conv(first, 8))
    joined = BEHIND[behind](writer, writer.concat(second, first))
    last = writer.conv(joined, 8, 3 if signed else 1)
    model = writer.done(last, writer.conv(second, 8, 1))
    x = np.random.default_rng(3).normal(size=(2, 8, 6, 6)).astype(np.float32) * np.float32(2)
    tensors = quantized_tensors(model)
    amaxes = [float(np.abs(values).max()) for values in inner(model, tensors, x)]
    scales = {name: scale_of(amax, 127) for name, amax in zip(tensors, amaxes, strict=True)}
    assert scales[first] != scales[second]
    return quantize(model, scales, narrow=[node.name for node in model.graph.node] if signed else ()), x


@pytest.mark.parametrize("form", ["avx2", "vnni"])
@pytest.mark.parametrize("behind", BEHIND)
def test_tensors_of_two_scales_side_by_side_are_clipped_and_rounded_right(behind: str, form: CpuForm) -> None:
    """OpenVINO reads a Clip behind them with the scale of the first."""
    made, x = side_by_side(behind)
    compiled = compile_model(lower(made, form).SerializeToString())
    for found, expected in zip(compiled(x).values(), run_onnx(made, x), strict=True):
        # a few values lie on a tie between two integers, and may fall to the other side
        assert relative_rms(expected, found) < 0.01


@pytest.mark.parametrize("form", ["avx2", "vnni"])
@pytest.mark.parametrize("behind", BEHIND)
def test_a_signed_tensor_behind_a_concat_is_rounded_right(behind: str, form: CpuForm) -> None:
    """OpenVINO quantizes what is joined, and the convolution behind it reads wrong integers."""
    made, x = side_by_side(behind, signed=True)
    compiled = compile_model(lower(made, form).SerializeToString())
    for found, expected in zip(compiled(x).values(), run_onnx(made, x), strict=True):
        assert relative_rms(expected, found) < 0.01


@pytest.mark.parametrize("form", ["avx2", "vnni"])
def test_an_average_behind_which_values_move_is_not_rounded(form: CpuForm) -> None:
    """OpenVINO rounds it to the integers of the values that it averages."""
    writer = Writer((8, 6, 6), seed=5)
    first = writer.relu(writer.conv(writer.relu("x"), 8))
    pooled = writer.pool(first, "AveragePool", 3, 1, [1, 1, 1, 1])
    moved = writer.shuffle(writer.shuffle(pooled))
    model = writer.done(writer.conv(moved, 8, 1), writer.head(moved), writer.conv(first, 8, 1))
    x = np.random.default_rng(3).normal(size=(2, 8, 6, 6)).astype(np.float32)
    tensors = quantized_tensors(model)
    amaxes = [float(np.abs(values).max()) for values in inner(model, tensors, x)]
    scales = {name: scale_of(amax, 127) for name, amax in zip(tensors, amaxes, strict=True)}
    # a scale of the average that lets few averages lie on a tie
    scales[moved] = np.float32(scales[moved] * 0.93)
    made = quantize(model, scales, narrow=[node.name for node in model.graph.node])
    answers = compile_model(lower(made, form).SerializeToString())(x).values()
    for found, expected in zip(answers, run_onnx(made, x), strict=True):
        assert relative_rms(expected, found) < 0.003


READERS: dict[str, dict[str, Any]] = {
    "MaxPool": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "AveragePool": {"kernel_shape": [2, 2], "strides": [2, 2]},
    "GlobalAveragePool": {},
    "Relu": {},
    "Transpose": {"perm": [0, 1, 3, 2]},
}


@pytest.mark.parametrize("form", ["avx2", "vnni"])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("bias", [None, np.zeros(8, np.float32)], ids=["none", "zeros"])
def test_a_convolution_without_a_bias_keeps_its_scale_for_two_readers(
    reader: str, form: CpuForm, bias: NDArray[np.float32] | None
) -> None:
    """OpenVINO drops a bias of zeros, and then the scale of what ``reader`` reads."""
    random = np.random.default_rng(0)
    model = one_conv(random.integers(-64, 65, (8, 3, 3, 3)).astype(np.int8))
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    values["ws"].CopyFrom(numpy_helper.from_array(np.full(8, 1e-3, np.float32), "ws"))
    if bias is not None:
        model.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
        next(node for node in model.graph.node if node.op_type == "Conv").input.append("bias")
    model.graph.node.append(helper.make_node(reader, ["logits"], ["other"], **READERS[reader]))
    model.graph.output.append(onnx.ValueInfoProto(name="other"))
    images = random.integers(-127, 128, (2, 3, 4, 4)).astype(np.float32)
    found = compile_model(lower(model, form).SerializeToString())(images)
    for mine, expected in zip(found.values(), run_onnx(model, images), strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["avx2", "vnni"])
@pytest.mark.parametrize("name", ["mobilenet", "identity", "plain"])
def test_a_dequantized_tensor_that_keeps_its_name_keeps_its_values(
    name: str, form: CpuForm, tmp_path: Path
) -> None:
    """By these names an engine's blocks are compared with those of the deployable graph."""
    graph, x = quantized(name, tmp_path), variant_images(name)
    lowered = lower(graph, form)
    made = {output for node in lowered.graph.node for output in node.output}
    weights = {tensor.name for tensor in graph.graph.initializer}
    kept = [
        node.output[0]
        for node in graph.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] not in weights and node.output[0] in made
    ]
    expected, found = (run_graph(each, x, outputs=kept) for each in (graph, lowered))
    assert len(kept) > 2
    for tensor in kept:
        assert relative_rms(expected[tensor].reshape(3, -1), found[tensor].reshape(3, -1)) < 0.02, tensor
