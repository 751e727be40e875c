"""Every rule passes on our graphs, and finds the mutation that it exists for and its block."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rescompile.graph.full_range import fold_zero_points
from rescompile.graph.half import half
from rescompile.graph.lint import RULES, fusable_adds, lint
from rescompile.graph.restore import restore
from rescompile.graph.shared.topology import block_outputs
from tests.graph.conftest import exported, folded, int8, network, with_zero_points

Mutation = Callable[[onnx.ModelProto], None]


def broken_rules(model: onnx.ModelProto, **asked: object) -> dict[str, str]:
    options = {"precision": "int8", "rest_type": "float32", "residual_adds": 8} | asked
    found: dict[str, str] = {}
    for violation in lint(model, **options):  # type: ignore[arg-type]
        found[violation.rule] = f"{found.get(violation.rule, '')}{violation.message}\n"
    return found


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet20-cifar", "resnet20-cifar-bottleneck"]
)
def test_our_graphs_are_clean_in_every_precision(name: str) -> None:
    adds = network(name)[0].residual_adds
    graph = int8(name)
    assert not lint(graph, precision="int8", rest_type="float32", residual_adds=adds)
    assert not lint(half(graph), precision="int8", rest_type="float16", residual_adds=adds)
    assert not lint(folded(name), precision="fp32", rest_type="float32", residual_adds=adds)
    assert not lint(half(folded(name)), precision="fp16", rest_type="float16", residual_adds=adds)
    assert fusable_adds(graph) == fusable_adds(half(graph)) == adds


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def constant(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    """Replace the initializer ``name``, or add it."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(values, name))
            return
    model.graph.initializer.append(numpy_helper.from_array(values, name))


def held(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)).copy()


def insert_pair(model: onnx.ModelProto, tensor: str, consumer: str) -> None:
    """A Q/DQ pair between ``tensor`` and the node ``consumer``."""
    constant(model, f"{tensor}.s", np.array(0.1, np.float32))
    constant(model, f"{tensor}.z", np.array(0, np.int8))
    user = node(model, consumer)
    position = list(user.input).index(tensor)
    inputs = [f"{tensor}.s", f"{tensor}.z"]
    model.graph.node.extend([
        helper.make_node("QuantizeLinear", [tensor, *inputs], [f"{tensor}.q"], name=f"{tensor}.q"),
        helper.make_node("DequantizeLinear", [f"{tensor}.q", *inputs], [f"{tensor}.dq"], name=f"{tensor}.dq"),
    ])  # fmt: skip
    user.input[position] = f"{tensor}.dq"


def uint8_activation(model: onnx.ModelProto) -> None:
    constant(model, "layer1.0.relu.zero_point", np.array(0, np.uint8))
    for name in ("quantize", "dequantize"):
        assert node(model, f"layer1.0.relu.{name}").input[2] == "layer1.0.relu.zero_point"


def zero_point(model: onnx.ModelProto) -> None:
    constant(model, "layer2.1.relu1.zero_point", np.array(3, np.int8))


def dead_scale(model: onnx.ModelProto) -> None:
    scale = held(model, "layer3.0.conv2.weight.scale")
    scale[7] = 0
    constant(model, "layer3.0.conv2.weight.scale", scale)


def nan_scale(model: onnx.ModelProto) -> None:
    constant(model, "flatten.scale", np.array(np.nan, np.float32))


def computed_scale(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Abs", ["maxpool.scale"], ["computed"], name="abs"))
    node(model, "maxpool.quantize").input[1] = "computed"


def per_channel_activation(model: onnx.ModelProto) -> None:
    constant(model, "layer1.0.relu1.scale", np.full(16, 0.1, np.float32))
    constant(model, "layer1.0.relu1.zero_point", np.zeros(16, np.int8))


def per_tensor_weight(model: onnx.ModelProto) -> None:
    constant(model, "layer4.1.conv1.weight.scale", np.array([0.1], np.float32))
    constant(model, "layer4.1.conv1.weight.zero_point", np.array([0], np.int8))


def wrong_axis(model: onnx.ModelProto) -> None:
    next(a for a in node(model, "layer1.1.conv2.weight.dequantize").attribute if a.name == "axis").i = 1


def int_bias(model: onnx.ModelProto) -> None:
    constant(model, "b32", np.zeros(16, np.int32))
    constant(model, "bs", np.array(0.1, np.float32))
    model.graph.node.append(helper.make_node("DequantizeLinear", ["b32", "bs"], ["bdq"], name="bias.dq"))
    node(model, "conv1").input[2] = "bdq"


def float_stem(model: onnx.ModelProto) -> None:
    node(model, "conv1").input[0] = "input"


def float_classifier_weight(model: onnx.ModelProto) -> None:
    constant(model, "fc.float", np.zeros((10, 128), np.float32))
    node(model, "fc").input[1] = "fc.float"


def unpaired(model: onnx.ModelProto) -> None:
    constant(model, "other.scale", np.array(0.123, np.float32))
    node(model, "layer1.0.relu1.dequantize").input[1] = "other.scale"


def quantized_before_relu(model: onnx.ModelProto) -> None:
    insert_pair(model, "layer1.0.conv1", "layer1.0.relu1")


def quantized_between_add_and_relu(model: onnx.ModelProto) -> None:
    insert_pair(model, "layer1.0.add", "layer1.0.relu")


def quantized_branch(model: onnx.ModelProto) -> None:
    insert_pair(model, "layer1.0.conv2", "layer1.0.add")


def float_skip(model: onnx.ModelProto) -> None:
    add = node(model, "layer1.1.add")
    add.input[list(add.input).index("layer1.0.relu.dequantize")] = "layer1.0.relu"


def branch_instead_of_skip(model: onnx.ModelProto) -> None:
    float_skip(model)
    insert_pair(model, "layer1.1.conv2", "layer1.1.add")


def own_skip_scale(model: onnx.ModelProto) -> None:
    float_skip(model)
    insert_pair(model, "layer1.0.relu", "layer1.1.add")


def quantizer_before_pool(model: onnx.ModelProto) -> None:
    insert_pair(model, "relu1", "maxpool")


def reduce_mean(model: onnx.ModelProto) -> None:
    constant(model, "axes", np.array([2, 3], np.int64))
    pool = node(model, "avgpool")
    pool.op_type = "ReduceMean"
    pool.input.append("axes")


def float_pool(model: onnx.ModelProto) -> None:
    node(model, "avgpool").input[0] = "layer4.1.relu"


def fp16_island(model: onnx.ModelProto) -> None:
    constant(model, "layer1.0.conv1.bias", np.zeros(16, np.float16))


def lost_block(model: onnx.ModelProto) -> None:
    add = node(model, "layer4.1.add")
    node(model, "layer4.1.relu").input[0] = next(name for name in add.input if name.endswith("conv2"))
    model.graph.node.remove(add)


def odd_width(model: onnx.ModelProto) -> None:
    constant(model, "layer1.0.conv1.weight.int8", np.zeros((12, 16, 3, 3), np.int8))


def old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 12


def no_zero_point(model: onnx.ModelProto) -> None:
    del node(model, "maxpool.quantize").input[2]


def unfolded(model: onnx.ModelProto) -> None:
    model.CopyFrom(exported("resnet18"))


MUTATIONS: list[tuple[Mutation, str, str]] = [
    (uint8_activation, "int8-only", "layer1.0.relu.quantize' makes uint8: use int8"),
    (zero_point, "zero-point-zero", "layer2.1.relu1.quantize' has zero point 3"),
    (no_zero_point, "zero-point-zero", "'maxpool.quantize' has no zero point"),
    (dead_scale, "scale-constant-positive", "layer3.0.conv2.weight.dequantize' has a scale.* in channel 7"),
    (nan_scale, "scale-constant-positive", "'flatten.quantize'"),
    (computed_scale, "scale-constant-positive", "scale of 'maxpool.quantize' is computed"),
    (per_channel_activation, "activation-per-tensor", "'layer1.0.relu1.quantize' has 16 scales"),
    (
        per_tensor_weight,
        "weight-per-channel",
        "'layer4.1.conv1' has 1 scales on axis 0: use one for each of the 128",
    ),
    (wrong_axis, "weight-per-channel", "'layer1.1.conv2' has 16 scales on axis 1"),
    (int_bias, "bias-float", "bias of 'conv1' comes from DequantizeLinear"),
    (int_bias, "int8-only", "'bias.dq' reads int32"),
    (float_stem, "inputs-quantized", "activation of 'conv1' is not quantized"),
    (float_classifier_weight, "inputs-quantized", "weight of 'fc' is not quantized"),
    (unpaired, "pairs", "'layer1.0.relu1.quantize' is read by 'layer1.0.relu1.dequantize'"),
    (quantized_before_relu, "outputs-unquantized", "'layer1.0.conv1' is quantized before its ReLU"),
    (quantized_between_add_and_relu, "outputs-unquantized", "'layer1.0.add'"),
    (quantized_branch, "residual-skip-only", "'layer1.0.add' has 2 quantized inputs"),
    (float_skip, "residual-skip-only", "'layer1.1.add' has 0 quantized inputs"),
    (branch_instead_of_skip, "residual-skip-only", "'layer1.1.add' has its Q/DQ on the convolution branch"),
    (own_skip_scale, "one-scale", "'layer1.0.relu.q' has another scale than 'layer1.0.relu.quantize'"),
    (quantizer_before_pool, "max-pool-passes", "'maxpool' has a quantizer in front"),
    (reduce_mean, "global-pool", "'avgpool' averages with ReduceMean"),
    (float_pool, "global-pool", "'avgpool' has Q/DQ on one side only"),
    (fp16_island, "rest-type", "'layer1.0.conv1.bias' of 'layer1.0.conv1' is float16"),
    (lost_block, "residual-count", "7 residual adds, the network has 8"),
    (odd_width, "channels", "'layer1.0.conv1' has 12 output channels"),
    (old_opset, "opset", "opset 12: int8 with float32 scales needs 13"),
    (unfolded, "batch-norm-folded", "'bn1' is still in the graph"),
]


@pytest.mark.parametrize(
    ("mutate", "rule", "message"), MUTATIONS, ids=lambda value: getattr(value, "__name__", None)
)
def test_each_mutation_breaks_its_rule_and_the_message_names_the_place(
    mutate: Mutation, rule: str, message: str
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(int8("resnet18"))
    mutate(model)
    found = broken_rules(model)
    assert rule in found, found
    assert re.search(message, found[rule]), found[rule]


def lost_quantizer(model: onnx.ModelProto) -> None:
    """A tensor whose ReLU was the saturation of its quantizer, without that."""
    for user in ("layer1.2.conv1", "layer1.2.add"):
        inputs = node(model, user).input
        inputs[list(inputs).index("layer1.1.relu.dequantize")] = "layer1.1.relu"
    for name in ("quantize", "dequantize"):
        model.graph.node.remove(node(model, f"layer1.1.relu.{name}"))


def padded_reader(model: onnx.ModelProto) -> None:
    next(entry for entry in node(model, "layer2.0.conv3").attribute if entry.name == "pads").ints[:] = [1] * 4


def other_reader(model: onnx.ModelProto) -> None:
    sigmoid = helper.make_node("Sigmoid", ["layer3.1.relu.dequantize"], ["other"], name="other")
    model.graph.node.append(sigmoid)
    model.graph.output.append(onnx.ValueInfoProto(name="other"))


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (lost_quantizer, "'layer1.1.relu' has an offset, but no quantizer that saturates"),
        (
            padded_reader,
            r"'layer2.0.conv3' pads 'layer2.0.relu2', whose zero is not 0, and the weights of a tap do",
        ),
        (other_reader, r"'other' \(Sigmoid\) reads 'layer3.1.relu', whose zero is not 0"),
    ],
)
def test_tensors_of_full_range_are_added_or_multiplied_and_padding_does_not_count(
    mutate: Mutation, message: str
) -> None:
    model = fold_zero_points(with_zero_points("resnet50"))
    mutate(model)
    found = broken_rules(model, residual_adds=16)
    assert re.search(message, found["full-range"]), found


def test_scale_type_follows_the_input_type() -> None:
    model = half(int8("resnet18"))
    constant(model, "maxpool.scale", np.array(0.1, np.float32))
    for value in model.graph.value_info:
        if value.name == "maxpool":
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
    found = broken_rules(model, rest_type="float16")
    assert "'maxpool.quantize' reads float16 with a float32 scale" in found["scale-type"]


def test_a_quantizer_in_a_float_engine_is_refused() -> None:
    assert "remove it" in broken_rules(int8("resnet18"), precision="fp32")["no-quantizer-in-float"]


def test_a_weight_that_is_computed_is_refused() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(folded("resnet18"))
    model.graph.node.insert(0, helper.make_node("Abs", ["fc.weight"], ["w2"], name="abs"))
    node(model, "fc").input[1] = "w2"
    assert "'fc' is computed" in broken_rules(model, precision="fp32")["weight-constant"]


BREAK = ("stem", "layer2.0", "layer2.1", "layer4.1")
"""Blocks in floating point at the beginning, in the middle and at the end."""


def with_break() -> onnx.ModelProto:
    return restore(int8("resnet18"), folded("resnet18"), BREAK)


def test_blocks_that_are_meant_to_be_fp16_break_no_rule_and_the_others_still_fuse() -> None:
    for model, rest_type in ((with_break(), "float32"), (half(with_break()), "float16")):
        assert not broken_rules(model, rest_type=rest_type, fp16_blocks=BREAK)
        assert fusable_adds(model) == 5
    everything = tuple(block_outputs(folded("resnet18")))
    assert not broken_rules(folded("resnet18"), fp16_blocks=everything)
    assert fusable_adds(folded("resnet18")) == 0


def test_a_break_that_was_not_asked_for_is_refused() -> None:
    found = broken_rules(with_break(), fp16_blocks=BREAK[:2])
    assert "weight of 'layer2.1.conv1' is not quantized" in found["inputs-quantized"]
    assert "'layer2.1.add' has 0 quantized inputs" in found["residual-skip-only"]
    assert "'layer4.1.conv2'" in found["inputs-quantized"]
    assert "layer2.0" not in found["inputs-quantized"]


def int8_in_a_break(model: onnx.ModelProto) -> None:
    model.CopyFrom(int8("resnet18"))


def pair_inside_a_break(model: onnx.ModelProto) -> None:
    insert_pair(model, "layer2.0.relu1", "layer2.0.conv2")


def pair_between_two_breaks(model: onnx.ModelProto) -> None:
    insert_pair(model, "layer2.0.relu", "layer2.1.add")


def quantized_input(model: onnx.ModelProto) -> None:
    insert_pair(model, "input", "conv1")


def float_end_of_an_int8_block(model: onnx.ModelProto) -> None:
    node(model, "layer2.0.downsample").input[0] = "layer1.1.relu"


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (int8_in_a_break, "weight of 'layer2.0.downsample' is quantized in a block to keep in FP16"),
        (pair_inside_a_break, "'layer2.0.conv2' reads Q/DQ although nothing in front of it is INT8"),
        (pair_between_two_breaks, "'layer2.1.add' reads Q/DQ although nothing in front"),
        (quantized_input, "'conv1' reads Q/DQ although nothing in front"),
        (float_end_of_an_int8_block, "'layer2.0.downsample' reads the end of an INT8 block without Q/DQ"),
    ],
)
def test_a_break_is_whole(mutate: Mutation, message: str) -> None:
    model = with_break()
    mutate(model)
    assert message in broken_rules(model, fp16_blocks=BREAK)["fp16-blocks"]


def test_a_pool_behind_an_int8_block_reads_its_quantizer_whatever_the_classifier_is() -> None:
    model = restore(int8("resnet18"), folded("resnet18"), ["fc"])
    assert not broken_rules(model, fp16_blocks=["fc"])
    float_pool(model)
    assert (
        "'avgpool' reads the end of an INT8 block" in broken_rules(model, fp16_blocks=["fc"])["fp16-blocks"]
    )


def test_blocks_with_few_channels_may_be_fp16() -> None:
    model = restore(int8("resnet18"), folded("resnet18"), ["layer1.0"])
    constant(model, "layer1.0.conv1.weight", np.zeros((12, 16, 3, 3), np.float32))
    assert "channels" not in broken_rules(model, fp16_blocks=["layer1.0"])
    assert "channels" in broken_rules(model)


def test_a_declared_block_that_does_not_exist_is_refused() -> None:
    found = broken_rules(int8("resnet18"), fp16_blocks=["layer7.0"])
    assert "no block 'layer7.0'" in found["fp16-blocks"]


def test_every_rule_has_a_mutation() -> None:
    elsewhere = {
        "scale-type",
        "no-quantizer-in-float",
        "weight-constant",
        "fp16-blocks",
        "full-range",
        "exact-pixels",
    }
    assert {rule for _, rule, _ in MUTATIONS} | elsewhere == set(RULES)


def test_fusable_adds_counts_only_what_fuses() -> None:
    # a float skip also keeps the block before it from ending in a quantizer alone
    for mutate, left in ((quantized_branch, 7), (float_skip, 6), (quantized_between_add_and_relu, 7)):
        model = onnx.ModelProto()
        model.CopyFrom(int8("resnet18"))
        mutate(model)
        assert fusable_adds(model) == left
