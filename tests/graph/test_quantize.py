import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rescompile.errors import GraphError
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.topology import full_range_tensors, quantized_tensors, reading_all_of_int8
from tests.graph.conftest import folded, images, int8, run


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20-cifar", "resnet20-cifar-bottleneck"])
def test_int8_graphs_stay_close_to_fp32(name: str) -> None:
    onnx.checker.check_model(int8(name), full_check=True)
    expected, found = run(folded(name), images(name))["logits"], run(int8(name), images(name))["logits"]
    error = np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean())
    assert 0 < error < 0.1


def test_an_identity_skip_reads_the_same_quantizer_as_conv1() -> None:
    by_name = {node.name: node for node in int8("resnet18").graph.node}
    assert by_name["layer1.1.conv1"].input[0] == "layer1.0.relu.dequantize"
    assert "layer1.0.relu.dequantize" in by_name["layer1.1.add"].input


def test_a_downsample_shares_the_block_input_and_its_output_has_a_quantizer_of_its_own() -> None:
    by_name = {node.name: node for node in int8("resnet18").graph.node}
    assert by_name["layer2.0.downsample"].input[0] == by_name["layer2.0.conv1"].input[0]
    assert sorted(by_name["layer2.0.add"].input) == ["layer2.0.conv2", "layer2.0.downsample.dequantize"]


def test_an_option_a_skip_takes_the_scale_of_the_block_input() -> None:
    model = int8("resnet20-cifar", "A")
    values = constants(model)
    assert values["layer2.0.shortcut.scale"] == values["layer1.2.relu.scale"]
    by_name = {node.name: node for node in model.graph.node}
    assert by_name["layer2.0.slice1"].input[0] == "layer1.2.relu.dequantize"


def test_requantizing_behind_slice_and_pad_changes_no_value() -> None:
    names = ["layer2.0.shortcut", "layer2.0.shortcut.dequantize"]
    seen = run(int8("resnet20-cifar", "A"), images("resnet20-cifar"), outputs=names)
    assert np.array_equal(seen[names[0]], seen[names[1]])
    assert np.any(seen[names[0]])


def test_weights_are_int8_per_output_channel_within_half_a_step() -> None:
    weights, values = constants(folded("resnet18")), constants(int8("resnet18"))
    for name in ("conv1.weight", "layer3.0.downsample.weight", "fc.weight"):
        step = values[f"{name}.scale"].reshape(-1, *[1] * (weights[name].ndim - 1))
        held = values[f"{name}.int8"]
        assert held.dtype == np.int8
        assert len(step) == len(held)
        assert np.all(np.abs(held * step - weights[name]) <= step * 0.5000001)


def test_layers_whose_input_uses_all_of_int8() -> None:
    assert reading_all_of_int8(folded("resnet18"), ()) == ["conv1"]
    graph = folded("resnet50")
    found = reading_all_of_int8(graph, full_range_tensors(graph))
    assert set(found[:4]) == {"conv1", "layer1.0.conv1", "layer1.0.conv3", "layer1.0.downsample"}
    assert len(found) == 1 + 16 + 16 + 4
    assert not any(name.endswith("conv2") or name == "fc" for name in found)


def test_biases_stay_float() -> None:
    made = producers(int8("resnet50"))
    values = constants(int8("resnet50"))
    for node in int8("resnet50").graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert values[node.input[2]].dtype == np.float32
            assert made[node.input[0]].op_type == made[node.input[1]].op_type == "DequantizeLinear"


def test_a_missing_scale_is_named() -> None:
    graph = folded("resnet18")
    scales = dict.fromkeys(quantized_tensors(graph), 0.1)
    del scales["layer2.0.downsample"]
    with pytest.raises(GraphError, match=r"no scale for 'layer2.0.downsample' \(1 of 22"):
        quantize(graph, scales)


def test_weights_take_the_scales_that_they_were_trained_for() -> None:
    graph = folded("resnet20-cifar")
    name = "layer1.0.conv1"
    weight, scales = constants(graph)[f"{name}.weight"], dict.fromkeys(quantized_tensors(graph), 0.1)
    amax = np.abs(weight).reshape(len(weight), -1).max(1)
    steps = (amax / np.float32(20)).astype(np.float32)
    steps[0] = amax[0] / 200
    made = constants(quantize(graph, scales, weight_steps={name: steps}))
    assert made[f"{name}.weight.scale"].tolist() == steps.tolist()
    largest = np.abs(made[f"{name}.weight.int8"].reshape(len(weight), -1).astype(int)).max(1)
    assert set(largest[1:].tolist()) == {20}
    # a backend that takes seven bits alone gets no more, whatever the table says
    narrow = constants(quantize(graph, scales, weight_steps={name: steps}, narrow=[name]))
    assert narrow[f"{name}.weight.scale"][1:].tolist() == steps[1:].tolist()
    assert np.abs(narrow[f"{name}.weight.int8"].astype(int)).max() == 63
    with pytest.raises(
        GraphError, match=r"has 3 weight scales for the 16 output channels of 'layer1.0.conv1'"
    ):
        quantize(graph, scales, weight_steps={name: steps[:3]})
