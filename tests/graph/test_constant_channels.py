"""Padded tensors of full range: the same integers at the border too, in a graph that may be undone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from rescompile.accuracy.error_by_block import Probe
from rescompile.errors import GraphError
from rescompile.graph.full_range import fold_zero_points, unfold_zero_points
from rescompile.graph.half import half
from rescompile.graph.lint import fusable_adds, lint
from rescompile.graph.restore import restore
from rescompile.graph.shared.constant_channels import add_constant_channels
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.metadata import CHANNELS, offsets_of, real_channels
from rescompile.graph.shared.topology import block_outputs
from tests.graph.conftest import folded, images, run, with_zero_points

ALL = 10_000
NETWORKS = [("resnet20-cifar", "A"), ("resnet20-cifar", "B"), ("resnet18", None), ("resnet50", None)]
Edit = Callable[[onnx.ModelProto], onnx.ModelProto]


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}


def graphs(name: str, shortcut: str | None) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    before = with_zero_points(name, widest=ALL, shortcut=shortcut)
    return before, fold_zero_points(before)


@pytest.mark.parametrize(("name", "shortcut"), NETWORKS)
def test_the_integers_stay_the_same_at_the_border_too(name: str, shortcut: str | None) -> None:
    before, after = graphs(name, shortcut)
    onnx.checker.check_model(after, full_check=True)
    early = [node.output[0] for node in after.graph.node if node.op_type == "QuantizeLinear"][:4]
    one, other = (run(graph, images(name), outputs=early) for graph in (before, after))
    for tensor in early:
        real = one[tensor].shape[1]
        steps = np.abs(one[tensor].astype(int) - other[tensor][:, :real])
        assert steps.max() <= 1, "sums in fp32 are rounded otherwise, so a tie may fall the other way"
        assert max(steps.mean(), steps[:, :, 0].mean()) < 1e-3
        assert (other[tensor][:, real:] == -128).all()
    assert any(other[tensor].shape[1] > one[tensor].shape[1] for tensor in early)


@pytest.mark.parametrize("rest", ["float32", "float16"])
@pytest.mark.parametrize(("name", "shortcut"), NETWORKS)
def test_the_graph_keeps_the_fusion_contract(name: str, shortcut: str | None, rest: str) -> None:
    before, after = graphs(name, shortcut)
    adds = sum(node.op_type == "Add" for node in before.graph.node)
    after = half(after) if rest == "float16" else after
    assert lint(after, precision="int8", rest_type=rest, residual_adds=adds) == ()
    assert fusable_adds(after) == adds


@pytest.mark.parametrize(("name", "shortcut"), NETWORKS)
def test_unfolding_gives_the_network_back(name: str, shortcut: str | None) -> None:
    before, after = graphs(name, shortcut)
    undone = unfold_zero_points(after)
    onnx.checker.check_model(undone, full_check=True)
    assert not real_channels(undone)
    assert not offsets_of(undone)
    expected, found = constants(before), constants(undone)
    assert expected.keys() == found.keys()
    for each, values in expected.items():
        assert values.shape == found[each].shape, each
        assert np.allclose(values, found[each], rtol=1e-4, atol=1e-4), each


def test_a_stage_has_one_number_of_channels_and_the_logits_stay() -> None:
    _, after = graphs("resnet20-cifar", "A")
    shapes = {
        name: values.shape for name, values in constants(after).items() if name.endswith("conv2.weight.int8")
    }
    stage = {shape[0] for name, shape in shapes.items() if name.startswith("layer1")}
    assert len(stage) == 1
    assert 16 < stage.pop() <= 32
    assert real_channels(after)["layer1.2.relu"] == 16
    assert real_channels(after)["layer2.0.shortcut"] == 32
    assert run(after, images("resnet20-cifar"))["logits"].shape == (2, 10)


@pytest.mark.parametrize("blocks", [("stem",), ("layer1.1", "layer2.0"), ("layer3.2", "fc")])
def test_blocks_in_floating_point_pad_tensors_of_full_range(blocks: tuple[str, ...]) -> None:
    mixed = restore(with_zero_points("resnet20-cifar", widest=ALL), folded("resnet20-cifar"), blocks)
    after = fold_zero_points(mixed)
    for graph, rest in ((after, "float32"), (half(after), "float16")):
        found = lint(graph, precision="int8", rest_type=rest, residual_adds=9, fp16_blocks=blocks)
        assert found == ()
    one, other = (run(graph, images("resnet20-cifar"))["logits"] for graph in (mixed, after))
    assert float(np.abs(one - other).max()) < 0.02 * float(np.abs(one).max())


def test_comparisons_see_the_real_channels_alone() -> None:
    before, after = graphs("resnet20-cifar", "A")
    outputs = list(block_outputs(before).values())
    image = images("resnet20-cifar")[0]
    sides = [
        Probe(graph.SerializeToString(), outputs, role="graph", exactly=True)(image)
        for graph in (before, after)
    ]
    for name in outputs:
        assert sides[0][name].shape == sides[1][name].shape
    assert np.allclose(sides[0]["layer1.0.relu"], sides[1]["layer1.0.relu"], atol=1e-3)


def test_what_a_shortcut_moves_has_the_offset_of_its_source() -> None:
    found = offsets_of(graphs("resnet20-cifar", "A")[1])
    assert found["layer2.0.shortcut"] == found["layer1.2.relu"]
    assert found["layer3.0.shortcut"] == found["layer2.2.relu"]


def test_networks_without_padding_get_none() -> None:
    assert not real_channels(fold_zero_points(with_zero_points("resnet50")))


def test_the_input_and_grouped_convolutions_cannot_have_them() -> None:
    graph = read(with_zero_points("resnet20-cifar", widest=ALL))
    nodes = {node.name: node for node in graph.nodes}
    with pytest.raises(
        GraphError, match=r"'conv1' cannot read .* 'input' is the network's own input or output"
    ):
        add_constant_channels(graph, [nodes["conv1"]])
    nodes["layer1.0.conv1"].attrs["group"] = 2
    with pytest.raises(GraphError, match=r"'layer1.0.conv1' cannot read constant channels: it is grouped"):
        add_constant_channels(graph, [nodes["layer1.0.conv1"]])


def test_lint_names_weights_that_do_not_sum_to_zero_and_other_padding() -> None:
    _, after = graphs("resnet20-cifar", "A")
    graph = read(after)
    nodes = {node.name: node for node in graph.nodes}
    held = nodes["layer1.0.conv2"].inputs[1].inputs[0]
    held.inputs[0].values[0, 0, 0, 0] ^= 1
    pad = nodes["layer2.0.shortcut"]
    pad.inputs[2] = gs.Constant("zero", np.zeros((), np.float32))
    found = [
        str(each) for each in lint(_exported(graph), precision="int8", rest_type="float32", residual_adds=9)
    ]
    assert len(found) == 2
    assert "'layer1.0.conv2' pads 'layer1.0.relu1', whose zero is not 0" in found[0] + found[1]
    assert "'layer2.0.shortcut' pads 'layer1.2.relu' with another value than its zero" in found[0] + found[1]


def _exported(graph: gs.Graph) -> onnx.ModelProto:
    from rescompile.graph.shared.editing import write

    return write(graph)


@pytest.mark.parametrize("text", ["", "-3", "0", "four", "1.5"])
def test_damaged_channels_are_one_sentence(edit: Edit, text: str) -> None:
    model = edit(graphs("resnet20-cifar", "A")[1])
    next(each for each in model.metadata_props if each.key == f"{CHANNELS}relu1").value = text
    for use in (real_channels, unfold_zero_points):
        with pytest.raises(GraphError, match="the graph's channels of 'relu1' are damaged"):
            use(model)
