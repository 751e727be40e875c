"""Operators that only move values: their outputs have the scale of what they move, and are not rounded twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from calibration.scales import scale_of
from rescompile.backends.openvino.runner import simulate
from rescompile.graph.full_range import fold_zero_points
from rescompile.graph.lint import lint
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.topology import full_range_tensors, quantized_tensors, scale_sources
from rescompile.manifest import Batch
from rescompile.metrics import relative_rms
from tests.calibration.single_operations import run_onnx
from tests.graph.random_graphs import Writer
from tests.graph.test_equalize import inner
from tests.graph.test_random_networks import prepared, shape_of

Move = Callable[[Writer, str], str]


def of(op: str, *constants: object, size: tuple[int, ...] = (32, 8, 8), **attributes: object) -> Move:
    def move(writer: Writer, x: str) -> str:
        return writer.add(
            op, [x, *(writer.constant(np.array(each)) for each in constants)], size, **attributes
        )

    return move


def channel_shuffle(writer: Writer, x: str) -> str:
    x = of("Reshape", [0, 4, 8, 8, 8])(writer, x)
    x = of("Transpose", perm=[0, 2, 1, 3, 4])(writer, x)
    return of("Reshape", [0, 32, 8, 8])(writer, x)


def parts_joined(writer: Writer, x: str) -> str:
    first = writer.move(x, "Split")
    return writer.concat(f"{first}.second", first)


def beside_zeros(writer: Writer, x: str) -> str:
    zeros = writer.constant(np.zeros((1, 8, 8, 8), np.float32))
    return writer.add("Concat", [zeros, x], (40, 8, 8), axis=1)


def two_tensors(writer: Writer, x: str) -> str:
    return writer.concat(x, writer.relu(writer.conv("x", 16)))


MOVES: dict[str, Move] = {
    "split": lambda writer, x: writer.move(x, "Split"),
    "parts joined": parts_joined,
    "x twice": lambda writer, x: writer.concat(x, x),
    "beside zeros": beside_zeros,
    "slice": lambda writer, x: writer.move(x, "Slice"),
    "pad with zeros": lambda writer, x: writer.move(x, "Pad"),
    "pad with the edge": of("Pad", [0, 0, 1, 1, 0, 0, 1, 1], size=(32, 10, 10), mode="edge"),
    "transpose": lambda writer, x: writer.move(x, "Transpose"),
    "channel shuffle": channel_shuffle,
    "gather": lambda writer, x: writer.shuffle(x),
    "max pool": lambda writer, x: writer.pool(x),
    "depth to space": of("DepthToSpace", size=(8, 16, 16), blocksize=2),
    "space to depth": lambda writer, x: writer.move(x, "SpaceToDepth"),
    "nearest": lambda writer, x: writer.resize(x, "nearest"),
    "tile": of("Tile", [1, 2, 1, 1], size=(64, 8, 8)),
}
COMPUTES: dict[str, Move] = {
    "average pool": lambda writer, x: writer.pool(x, "AveragePool"),
    "pad with ones": of("Pad", [0, 0, 1, 1, 0, 0, 1, 1], np.float32(1), size=(32, 10, 10)),
    "beside another tensor": two_tensors,
    "linear": lambda writer, x: writer.resize(x, "linear"),
    "sigmoid": of("Sigmoid"),
}


def network(move: Move, kernel: int = 3) -> tuple[onnx.ModelProto, str, str]:
    """A tensor that a convolution reads and, behind ``move``, another one; with the two tensors' names."""
    writer = Writer((3, 8, 8), seed=1)
    x = writer.relu(writer.conv("x", 32))
    ends = [writer.head(writer.relu(writer.conv(each, 16, kernel))) for each in (x, move(writer, x))]
    model = prepared(writer.done(*ends))
    tensors = quantized_tensors(model)
    reading = [node.input[0] for node in model.graph.node if node.op_type == "Conv"]
    return model, *[each for each in dict.fromkeys(reading) if each in tensors and each != "input"][:2]


def deployable(model: onnx.ModelProto, widest: int = 0) -> onnx.ModelProto:
    """``model`` quantized with ranges of its own for every tensor."""
    x = np.random.default_rng(0).standard_normal((1, *shape_of(model)), dtype=np.float32)
    tensors, full = quantized_tensors(model), full_range_tensors(model, widest=widest)
    ranges = [float(np.abs(each).max()) for each in inner(model, tensors, x)]
    scales = {
        # each tensor's own scale differs, so that only sharing makes two equal
        name: scale_of(amax * (1 + place / 50), 255 if name in full else 127)
        for place, (name, amax) in enumerate(zip(tensors, ranges, strict=True))
    }
    return quantize(model, scales, full_range=full)


@pytest.mark.parametrize("name", MOVES)
def test_what_is_moved_has_the_scale_of_its_source_and_is_not_rounded_again(name: str) -> None:
    model, source, moved = network(MOVES[name])
    assert scale_sources(read(model))[moved] == source
    made = deployable(model)
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8), dtype=np.float32)
    before, behind = inner(made, [moved, f"{moved}.dequantize"], x)
    assert np.array_equal(before, behind)
    assert not lint(made, precision="int8", rest_type="float32", residual_adds=0)


@pytest.mark.parametrize("name", COMPUTES)
def test_what_is_computed_has_a_scale_of_its_own(name: str) -> None:
    model, _, _ = network(COMPUTES[name])
    sources = scale_sources(read(model))
    assert all(tensor == source for tensor, source in sources.items())
    assert list(sources) == quantized_tensors(model)


def test_lint_finds_a_moved_tensor_with_another_scale() -> None:
    model, source, moved = network(MOVES["split"])
    made = deployable(model)
    (scale,) = (each for each in made.graph.initializer if each.name == f"{moved}.scale")
    scale.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.5), scale.name))
    (broken,) = lint(made, precision="int8", rest_type="float32", residual_adds=0)
    assert (broken.rule, broken.message) == (
        "one-scale",
        f"'{moved}.quantize' has another scale than '{source}.quantize', but the same values: give both one scale",
    )


@pytest.mark.parametrize(("name", "kernel", "full"), [("slice", 1, 2), ("slice", 3, 0), ("split", 1, 0)])
def test_a_slice_of_a_full_range_tensor_has_its_zero(name: str, kernel: int, full: int) -> None:
    """A padding convolution behind a slice cannot get constant channels, and a split is not a shortcut's operator."""
    model, source, moved = network(MOVES[name], kernel)
    found = full_range_tensors(model, widest=64)
    assert [each for each in found if each in (source, moved)] == [source, moved][:full]
    before = deployable(model, widest=64)
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8), dtype=np.float32)
    for expected, answer in zip(run_onnx(before, x), run_onnx(fold_zero_points(before), x), strict=True):
        assert relative_rms(expected, answer) < 1e-3


@pytest.mark.parametrize("name", MOVES)
def test_openvino_moves_values_as_the_graph_does(name: str) -> None:
    """In INT8 and in float; OpenVINO's own form of a channel shuffle by Gather is wrong."""
    model, _, _ = network(MOVES[name], kernel=1)
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8), dtype=np.float32)
    for each in (model, deployable(model)):
        engine = simulate(each, Batch(1, 1, 1))
        for expected, answer in zip(run_onnx(each, x), engine.tensors(x).values(), strict=True):
            assert relative_rms(expected, answer) < 0.02


@pytest.mark.parametrize("pool", [None, "MaxPool", "AveragePool"])
def test_a_flat_activation_of_a_convolution_without_biases_keeps_its_scales(pool: str | None) -> None:
    """Clipped behind the Flatten, OpenVINO would give channels the scales of others."""
    writer = Writer((3, 8, 8), seed=1)
    x = writer.conv(writer.relu(writer.conv("x", 32)), 32)
    writer.constants[writer.nodes[-1].input[2]][:] = 0
    x = writer.relu(x)
    if pool:
        x = writer.pool(x, pool, 1, 1, [0, 0, 0, 0])
    flat = writer.add("Flatten", [x], (32 * 64,), axis=1)
    made = deployable(prepared(writer.done(writer.linear(flat, 16))))
    pixels = np.random.default_rng(1).standard_normal((1, 3, 8, 8), dtype=np.float32)
    (answer,) = simulate(made, Batch(1, 1, 1)).tensors(pixels).values()
    assert relative_rms(run_onnx(made, pixels)[0], answer) < 0.01
