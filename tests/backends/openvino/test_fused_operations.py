"""A guard of the engine's speed that no other program disturbs: what OpenVINO executes, layer by layer."""

from __future__ import annotations

from collections import Counter

import onnx
import pytest

from rescompile.backends.cpu.forms import machine_form
from rescompile.backends.cpu.lowering import lower
from rescompile.backends.openvino.compile import compile_model
from tests.graph.conftest import folded, int8

FREE = {"Const", "Input", "Output", "Reshape"}
"""Layers that take no time."""
INTEGERS = {"u8", "i8"}


def layers(model: onnx.ModelProto) -> Counter[tuple[str, str]]:
    """Executed layers by type and precision."""
    nodes = compile_model(model.SerializeToString()).get_runtime_model().get_ordered_ops()
    infos = [node.get_rt_info() for node in nodes]
    found = Counter((info["layerType"].value, info["runtimePrecision"].value) for info in infos)
    return Counter({key: count for key, count in found.items() if key[0] not in FREE})


def count(found: Counter[tuple[str, str]], *kinds: str, precisions: set[str] | None = None) -> int:
    return sum(
        number
        for (kind, precision), number in found.items()
        if kind in kinds and (precisions is None or precision in precisions)
    )


@pytest.mark.parametrize("oldest", [True, False])
@pytest.mark.parametrize("name", ["resnet18", "resnet20-cifar"])
def test_every_addition_activation_and_quantizer_is_part_of_a_convolution(name: str, oldest: bool) -> None:
    graph = int8(name)
    written = Counter(node.op_type for node in graph.graph.node)
    found = layers(lower(graph, "avx2" if oldest else machine_form()))
    weighted = written["Conv"] + written["Gemm"]
    assert count(found, "Convolution", "FullyConnected", precisions=INTEGERS) == weighted
    # the first quantizer, the classifier's, and one for each shortcut that only moves values
    assert count(found, "FakeQuantize") <= 2 + written["Pad"]
    # two images of opposite signs replace a signed one where sums have 16 bits
    assert count(found, "Eltwise", "Subgraph") <= (1 if oldest or machine_form() == "avx2" else 0)
    # shortcuts of CIFAR networks that pad change the layout twice
    allowed = 1.4 + 6 * written["Pad"] / weighted
    assert found.total() / weighted <= allowed, found


def test_the_guard_sees_layers_that_are_not_fused() -> None:
    found = layers(folded("resnet18", None))
    assert count(found, "Convolution", "FullyConnected", precisions=INTEGERS) == 0
    graph = onnx.ModelProto()
    graph.CopyFrom(int8("resnet18"))
    add = next(node for node in graph.graph.node if node.op_type == "Add")
    reader = next(node for node in graph.graph.node if add.output[0] in node.input)
    between = onnx.helper.make_node(
        "MaxPool", [add.output[0]], ["between"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]
    )
    reader.input[list(reader.input).index(add.output[0])] = "between"
    graph.graph.node.insert(list(graph.graph.node).index(reader), between)
    more, fewer = layers(lower(graph, "avx2")), layers(lower(int8("resnet18"), "avx2"))
    assert more.total() > fewer.total()
