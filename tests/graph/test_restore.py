"""Blocks in floating point: nothing quantized inside, the neighbours as before."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from rescompile.errors import GraphError
from rescompile.graph.restore import restore
from rescompile.graph.shared.topology import block_outputs
from tests.graph.conftest import folded, images, int8, run

NETWORKS = ["resnet18", "resnet20-cifar", "resnet20-cifar-bottleneck"]


def mixed(name: str, *blocks: str, shortcut: str | None = None) -> onnx.ModelProto:
    return restore(int8(name, shortcut), folded(name, shortcut), blocks)


def nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {node.name: node for node in model.graph.node}


def quantized(model: onnx.ModelProto) -> set[str]:
    """Activations that have Q/DQ."""
    return {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}


def test_no_block_is_no_change() -> None:
    assert mixed("resnet18").SerializeToString() == int8("resnet18").SerializeToString()


@pytest.mark.parametrize("name", NETWORKS)
def test_all_blocks_are_the_network_itself(name: str) -> None:
    whole = mixed(name, *block_outputs(folded(name)))
    assert not quantized(whole)
    x = images(name)
    assert np.array_equal(run(whole, x)["logits"], run(folded(name), x)["logits"])


def test_the_neighbours_of_a_restored_block_stay_int8_on_both_sides() -> None:
    made = nodes(mixed("resnet18", "layer2.0"))
    assert made["layer1.1.relu.quantize"].input[0] == "layer1.1.relu"
    for reader in ("layer2.0.conv1", "layer2.0.downsample"):
        assert made[reader].input[0] == "layer1.1.relu.dequantize"
        assert not any(name.startswith(f"{reader}.weight.") for name in made[reader].input)
    assert list(made["layer2.0.add"].input) in (
        ["layer2.0.conv2", "layer2.0.downsample"],
        ["layer2.0.downsample", "layer2.0.conv2"],
    )
    assert made["layer2.1.conv1"].input[0] == "layer2.0.relu.dequantize"
    assert "layer2.0.relu.dequantize" in made["layer2.1.add"].input


def test_nothing_is_quantized_inside_a_block_or_between_two() -> None:
    found = quantized(mixed("resnet18", "layer2.0", "layer2.1"))
    assert quantized(int8("resnet18")) - found == {
        "layer2.0.relu1",
        "layer2.0.downsample",
        "layer2.0.relu",
        "layer2.1.relu1",
    }


def test_the_input_is_not_quantized_for_a_stem_in_floating_point() -> None:
    lost = quantized(int8("resnet18")) - quantized(mixed("resnet18", "stem"))
    assert lost == {"input"}


@pytest.mark.parametrize(
    ("blocks", "before", "behind"),
    [
        (("fc",), True, False),
        (("layer4.1",), False, True),
        (("layer4.1", "fc"), False, False),
        ((), True, True),
    ],
)
def test_the_pool_is_quantized_on_the_sides_of_int8_blocks(
    blocks: tuple[str, ...], before: bool, behind: bool
) -> None:
    found = quantized(mixed("resnet18", *blocks))
    assert ("layer4.1.relu" in found, "flatten" in found) == (before, behind)


def test_an_option_a_shortcut_in_floating_point_has_no_quantizer_of_its_own() -> None:
    made = nodes(mixed("resnet20-cifar", "layer2.0", shortcut="A"))
    assert "layer2.0.shortcut.quantize" not in made
    assert "layer2.0.shortcut" in made["layer2.0.add"].input
    assert made["layer2.0.slice1"].input[0] == "layer1.2.relu.dequantize"


@pytest.mark.parametrize("block", ["stem", "layer1.1", "layer2.0", "fc"])
def test_weights_and_biases_come_back_exactly(block: str) -> None:
    def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
        return {entry.name: onnx.numpy_helper.to_array(entry) for entry in model.graph.initializer}

    model = mixed("resnet18", block)
    held, exact = constants(model), constants(folded("resnet18"))
    own = {"stem": "conv1", "fc": "fc"}.get(block, f"{block}.conv1")
    node = nodes(model)[own]
    for name in node.input[1:]:
        assert np.array_equal(held[name], exact[name])
    onnx.checker.check_model(model, full_check=True)


def test_a_block_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(
        GraphError, match=r"no block 'layer9.0': its blocks are stem, layer1.0, .*layer4.1, fc"
    ):
        mixed("resnet18", "layer9.0")
