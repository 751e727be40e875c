"""Channel factors in any graph: the function stays the same, and what cannot be scaled keeps its unit."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, given, settings
from numpy.typing import NDArray

from calibration.methods.channel_groups import ChannelGroups, channel_groups
from rescompile.graph.equalize import equalize
from tests.calibration.single_operations import run_onnx
from tests.graph.random_graphs import Writer, networks


def random_factors(groups: ChannelGroups, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Factors between 1/8 and 8 of all tensors."""
    values = np.exp(np.random.default_rng(seed).uniform(-2, 2, groups.count)).astype(np.float32)
    values[0] = 1
    return {name: values[ids] for name, ids in groups.of.items()}


def inner(model: onnx.ModelProto, names: list[str], x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    have = {entry.name for entry in shown.graph.output}
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    order = [entry.name for entry in shown.graph.output]
    found = dict(zip(order, run_onnx(shown, x), strict=True))
    return [found[name] for name in names]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_equalizing_changes_nothing_outside_and_divides_inside(drawn: tuple[Writer, onnx.ModelProto]) -> None:
    writer, model = drawn
    x = np.random.default_rng(1).normal(size=(2, *writer.shape)).astype(np.float32)
    groups = channel_groups(model)
    factors = random_factors(groups)
    equalized = equalize(model, factors)
    for before, after in zip(run_onnx(model, x), run_onnx(equalized, x), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * max(np.abs(before).max(), 1e-3))
    names = [name for name in groups.of if name != "x"]
    for name, before, after in zip(names, inner(model, names, x), inner(equalized, names, x), strict=True):
        assert before.shape[1] == len(factors[name]), name
        scaled = after * factors[name].reshape(-1, *[1] * (before.ndim - 2))
        np.testing.assert_allclose(scaled, before, rtol=1e-3, atol=1e-4 * max(np.abs(before).max(), 1e-3))


def free(writer: Writer, model: onnx.ModelProto) -> dict[str, bool]:
    """Operation to whether the channels that it makes may be scaled."""
    groups = channel_groups(model)
    return {node.op_type: groups.free(node.output[0]) for node in writer.nodes}


def test_depthwise_convolutions_keep_their_channels_apart() -> None:
    writer = Writer((3, 8, 8))
    x = writer.relu(writer.conv("x", 8))
    x = writer.relu(writer.conv(x, 8, group=8))
    model = writer.done(writer.head(x))
    found = channel_groups(model).of
    assert len(set(found["relu1"]) | set(found["relu3"])) == 16


def test_a_concatenation_carries_channels_over_and_ties_nothing() -> None:
    writer = Writer((3, 8, 8))
    left, right = (writer.relu(writer.conv("x", 4)) for _ in range(2))
    joined = writer.concat(left, right)
    found = channel_groups(writer.done(writer.head(joined))).of
    assert list(found[joined]) == [*found[left], *found[right]]
    assert len(set(found[joined])) == 8


def test_a_sum_of_concatenated_channels_ties_both_parts() -> None:
    writer = Writer((3, 8, 8))
    left, right = (writer.relu(writer.conv("x", 4)) for _ in range(2))
    total = writer.sum(writer.concat(left, right), writer.concat(right, left))
    found = channel_groups(writer.done(writer.head(total))).of
    assert list(found[left]) == list(found[right])


def test_a_gate_has_no_factor_and_lets_those_of_its_input_through() -> None:
    writer = Writer((3, 8, 8))
    x = writer.relu(writer.conv("x", 8))
    gated = writer.gate(x)
    found = channel_groups(writer.done(writer.head(gated)))
    assert list(found.of[gated]) == list(found.of[x])
    assert found.free(x)
    assert not any(found.free(node.output[0]) for node in writer.nodes if node.op_type == "Sigmoid")


def test_what_is_not_homogeneous_pins_its_channels() -> None:
    for op in ("clip", "swish", "product"):
        writer = Writer((3, 8, 8))
        x = writer.conv("x", 8)
        size = writer.sizes[x]
        if op == "clip":
            made = writer.clip(x)
        elif op == "swish":
            made = writer.add("HardSwish", [x], size)
        else:
            made = writer.add("Mul", [x, writer.relu(writer.conv("x", 8))], size)
        found = channel_groups(writer.done(writer.head(made)))
        assert not found.free(x), op
        assert not found.free(made), op


def test_a_norm_that_stays_parts_the_channels_in_front_from_those_behind() -> None:
    writer = Writer((3, 8, 8))
    x = writer.relu(writer.conv("x", 8))
    found = channel_groups(writer.done(writer.head(writer.norm(x)))).of
    assert not set(found[x]) & set(found["batchnormalization2"])


def test_a_constant_that_is_added_and_weights_of_two_layers_pin() -> None:
    writer = Writer((3, 8, 8))
    x = writer.relu(writer.conv("x", 8))
    moved = writer.add("Add", [x, writer.constant(np.ones((8, 1, 1), np.float32))], writer.sizes[x])
    assert not channel_groups(writer.done(writer.head(moved))).free(x)
    writer = Writer((3, 8, 8))
    first = writer.conv("x", 3)
    again = writer.add("Conv", [writer.relu(first), *writer.nodes[0].input[1:]], (3, 8, 8), pads=[1] * 4)
    assert not channel_groups(writer.done(writer.head(again))).free(first)


def test_a_flattened_plane_repeats_its_channels() -> None:
    writer = Writer((3, 4, 4))
    x = writer.relu(writer.conv("x", 2))
    flat = writer.add("Flatten", [x], (32,), axis=1)
    model = writer.done(writer.linear(flat, 3))
    found = channel_groups(model)
    assert list(found.of[flat]) == list(found.of[x].repeat(16))
    assert found.free(flat)


def test_channels_are_shuffled_by_sizes_that_the_graph_computes() -> None:
    writer = Writer((3, 4, 4))
    x = writer.relu(writer.conv("x", 6))
    shape = writer.add("Shape", [x], (4,), start=0, end=1)
    split, joined = (writer.constant(np.array(sizes)) for sizes in ([2, 3, 4, 4], [6, 4, 4]))
    parts = writer.add("Reshape", [x, writer.add("Concat", [shape, split], (5,), axis=0)], (2, 3, 4, 4))
    turned = writer.add("Transpose", [parts], (3, 2, 4, 4), perm=[0, 2, 1, 3, 4])
    back = writer.add("Reshape", [turned, writer.add("Concat", [shape, joined], (4,), axis=0)], (6, 4, 4))
    model = writer.done(writer.head(back))
    factors = random_factors(channel_groups(model))
    x_ = np.random.default_rng(1).normal(size=(2, 3, 4, 4)).astype(np.float32)
    (before,), (after,) = run_onnx(model, x_), run_onnx(equalize(model, factors), x_)
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    assert len(factors[back]) == 6


def test_a_mean_of_channels_pins_and_one_of_the_plane_does_not() -> None:
    for axes, expected in (([2, 3], True), ([1], False)):
        writer = Writer((3, 4, 4))
        x = writer.relu(writer.conv("x", 2))
        mean = writer.add("ReduceMean", [x, writer.constant(np.array(axes))], (2, 1, 1))
        model = writer.done(writer.conv(mean, 2, 1) if expected else writer.add("Mul", [x, mean], (2, 4, 4)))
        assert channel_groups(model).free(x) == expected
