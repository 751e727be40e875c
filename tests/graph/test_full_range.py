"""Zero points of -128 folded into biases: the same integers, no zero point, no ReLU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from rescompile.errors import GraphError
from rescompile.graph.full_range import fold_zero_points, unfold_zero_points
from rescompile.graph.half import half
from rescompile.graph.lint import fusable_adds, lint
from rescompile.graph.quantize import quantize
from rescompile.graph.restore import restore
from rescompile.graph.shared.metadata import OFFSET, offsets_of, without_offset
from rescompile.graph.shared.topology import full_range_tensors, quantized_tensors
from tests.calibration.single_operations import run_onnx
from tests.graph.conftest import folded, images, int8, run, with_zero_points
from tests.graph.random_graphs import Writer

NETWORKS = ["resnet50", "resnet20-cifar-bottleneck"]


def integers(model: onnx.ModelProto) -> list[str]:
    return [node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]


def same_integers(before: onnx.ModelProto, after: onnx.ModelProto, name: str) -> None:
    """Compare the first layers only: fp32 sums round differently, ties then fall the other way, and that spreads."""
    early = integers(after)[:8]
    one, other = (run(graph, images(name), outputs=early) for graph in (before, after))
    for tensor in early:
        steps = np.abs(one[tensor].astype(int) - other[tensor])
        assert steps.max() <= 1
        assert steps.mean() < 1e-4
        assert other[tensor].dtype == np.int8


def test_inputs_of_unpadded_convolutions_behind_a_relu_have_the_full_range() -> None:
    found = full_range_tensors(folded("resnet50"))
    assert found[:4] == ["maxpool", "layer1.0.relu2", "layer1.0.relu", "layer1.1.relu2"]
    assert len(found) == 1 + 16 + 15, "the stem, each conv3's input, each block but the last"
    assert full_range_tensors(folded("resnet18")) == []


def test_where_padding_is_balanced_all_but_the_last_block_have_it() -> None:
    graph = folded("resnet20-cifar")
    able = [name for name in quantized_tensors(graph) if "relu" in name]
    assert full_range_tensors(graph, widest=64) == able[:-1]
    narrow = full_range_tensors(graph, widest=16)
    assert narrow == [name for name in able if name.startswith(("relu1", "layer1"))]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_integers_stay_the_same(name: str) -> None:
    before = with_zero_points(name)
    after = fold_zero_points(before)
    onnx.checker.check_model(after, full_check=True)
    same_integers(before, after, name)


def test_no_zero_point_and_none_of_the_relus_is_left() -> None:
    after = fold_zero_points(with_zero_points("resnet50"))
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    zeros = [constants[node.input[2]] for node in after.graph.node if "Quantize" in node.op_type]
    assert zeros
    assert not any(zero.any() for zero in zeros)
    relus = [node.output[0] for node in after.graph.node if node.op_type == "Relu"]
    assert len(relus) == 1 + 16 * 3 - len(full_range_tensors(folded("resnet50")))
    assert set(offsets_of(after)) == set(full_range_tensors(folded("resnet50")))


def test_its_rounding_error_is_half_that_of_the_half_range() -> None:
    names = ["maxpool", "maxpool.dequantize"]
    errors = []
    for graph in (fold_zero_points(with_zero_points("resnet50", part=1.0)), int8("resnet50")):
        seen, offset = run(graph, images("resnet50"), outputs=names), offsets_of(graph).get("maxpool", 0.0)
        exact, rounded = (without_offset("maxpool", seen[name], {"maxpool": offset}) for name in names)
        errors.append(float(np.sqrt(np.square(exact - rounded).mean())))
    assert 0.4 < errors[0] / errors[1] < 0.6


def clipped(bounds: list[float | None]) -> onnx.ModelProto:
    """A convolution, a Clip and an unpadded convolution that reads it through a quantizer of full range."""
    writer = Writer((3, 8, 8))
    ends = ["" if bound is None else writer.constant(np.float32(bound)) for bound in bounds]
    summed = writer.conv("x", 16)
    clip = writer.add("Clip", [summed, *ends], writer.sizes[summed])
    model = writer.done(writer.conv(clip, 16, 1))
    assert quantized_tensors(model) == ["x", clip]
    able = full_range_tensors(model)
    return quantize(model, {"x": 0.03, clip: 0.4 / 255}, full_range=able)


@pytest.mark.parametrize("bounds", [[0.0, 0.25], [0.0, 6.0], [0.0], [0.0, None]])
def test_a_clip_from_zero_up_keeps_its_upper_bound(bounds: list[float | None]) -> None:
    """Whether that lies below the largest value that the quantizer holds, above, or nowhere."""
    before = clipped(bounds)
    after = fold_zero_points(before)
    onnx.checker.check_model(after, full_check=True)
    (offset,) = offsets_of(after).values()
    assert offset == pytest.approx(128 * 0.4 / 255)
    (top,) = [bound for bound in bounds[1:] if bound is not None] or [None]
    kept = [node for node in after.graph.node if node.op_type == "Clip"]
    assert [node.input[1] for node in kept] == [""] * (top is not None)
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8), dtype=np.float32)
    for each in (after, unfold_zero_points(after), half(after)):
        (expected,), (found,) = run_onnx(before, x), run_onnx(each, x)
        assert np.abs(expected - found).mean() < 0.01 * np.abs(expected).mean()
    constants = {
        each.name: onnx.numpy_helper.to_array(each) for each in unfold_zero_points(after).graph.initializer
    }
    if top is not None:
        (clip,) = [node for node in unfold_zero_points(after).graph.node if node.op_type == "Clip"]
        assert [float(constants[name]) for name in clip.input[1:]] == pytest.approx([0, top])


@pytest.mark.parametrize("bounds", [[-1.0, 6.0], [0.1, 6.0], [None, 6.0]])
def test_a_clip_from_elsewhere_has_no_full_range(bounds: list[float | None]) -> None:
    assert offsets_of(fold_zero_points(clipped(bounds))) == {}


@pytest.mark.parametrize("rest", ["float32", "float16"])
def test_the_graph_keeps_the_fusion_contract(rest: str) -> None:
    graph = fold_zero_points(with_zero_points("resnet50"))
    graph = half(graph) if rest == "float16" else graph
    assert lint(graph, precision="int8", rest_type=rest, residual_adds=16) == ()
    assert fusable_adds(graph) == 16


def test_unfolding_gives_the_zero_points_back() -> None:
    before = with_zero_points("resnet50")
    after = unfold_zero_points(fold_zero_points(before))
    onnx.checker.check_model(after, full_check=True)
    assert offsets_of(after) == {}
    assert sum(node.op_type == "Relu" for node in after.graph.node) == 1 + 16 * 3
    biases = [
        {
            each.name: onnx.numpy_helper.to_array(each)
            for each in graph.graph.initializer
            if "bias" in each.name
        }
        for graph in (before, after)
    ]
    for name, bias in biases[0].items():
        assert np.allclose(bias, biases[1][name], rtol=1e-4, atol=1e-4 * float(np.abs(bias).max()))


def test_graphs_without_them_stay_as_they_are() -> None:
    assert fold_zero_points(int8("resnet18")) is int8("resnet18")
    assert unfold_zero_points(int8("resnet18")) is int8("resnet18")


def test_blocks_in_floating_point_read_and_make_tensors_of_full_range() -> None:
    blocks = ("layer1.1", "layer1.2", "layer3.0")
    mixed = restore(with_zero_points("resnet50"), folded("resnet50"), blocks)
    after = fold_zero_points(mixed)
    found = lint(after, precision="int8", rest_type="float32", residual_adds=16, fp16_blocks=blocks)
    assert found == ()
    assert "layer1.1.relu" not in offsets_of(after), (
        "between two blocks in floating point nothing is quantized"
    )
    same_integers(mixed, after, "resnet50")


def test_values_come_back_as_the_relu_gives_them() -> None:
    values = np.array([-3.0, -2.0, 1.0], np.float16)
    assert np.array_equal(without_offset("a", values, {"a": 2.0}), [0, 0, 3])
    assert without_offset("b", values, {"a": 2.0}) is values


@pytest.mark.parametrize("text", ["", "nan", "-0x1p3", "inf", "0x0p0", "two"])
def test_a_damaged_offset_is_one_sentence(text: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(int8("resnet20-cifar"))
    onnx.helper.set_model_props(model, {OFFSET + "relu1": text})
    with pytest.raises(GraphError, match="the graph's offset of 'relu1' is damaged"):
        offsets_of(model)


def test_an_offset_without_a_quantizer_is_one_sentence() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(int8("resnet20-cifar"))
    onnx.helper.set_model_props(model, {OFFSET + "nothing": (2.0).hex()})
    with pytest.raises(GraphError, match="the graph's offset of 'nothing' has no quantizer"):
        unfold_zero_points(model)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ("input", "'input' has the zero point -128, but no ReLU makes it"),
        ("layer4.2.relu", r"'avgpool' \(GlobalAveragePool\) cannot read a tensor of full range"),
    ],
)
def test_a_tensor_that_cannot_have_it_is_refused(tensor: str, words: str) -> None:
    graph = folded("resnet50")
    wrong = quantize(graph, dict.fromkeys(quantized_tensors(graph), 0.1), full_range=[tensor])
    with pytest.raises(GraphError, match=words):
        fold_zero_points(wrong)
