"""Random networks through every rewrite that INT8 needs: each computes what the graph before it does."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, assume, given, settings
from numpy.typing import NDArray

from calibration.methods.channel_groups import channel_groups
from calibration.preprocess import Color, Preprocess
from calibration.scales import scale_of
from rescompile.graph.equalize import equalize
from rescompile.graph.fold import fold
from rescompile.graph.full_range import fold_zero_points, unfold_zero_points
from rescompile.graph.pixels import read_pixels, reason_against
from rescompile.graph.placement import place
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.topology import full_range_tensors, quantized_tensors
from rescompile.graph.simplify import simplify
from rescompile.graph.structure import structure
from tests.calibration.single_operations import run_onnx
from tests.graph.random_graphs import FAMILIES, Writer, networks
from tests.graph.test_equalize import inner, random_factors

COLORS: dict[int, Color] = {1: "GRAY", 3: "RGB", 4: "RGBA"}
EVERY = 1 << 20


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` as the source stage hands it on."""
    names = tuple(output.name for output in model.graph.output)
    return place(structure(fold(simplify(model).graph), names)[0])


def shape_of(model: onnx.ModelProto) -> tuple[int, ...]:
    return tuple(side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[1:])


def close(
    found: list[NDArray[np.float32]], expected: list[NDArray[np.float32]], tolerance: float = 1e-4
) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        error = np.sqrt(np.square(ours - theirs, dtype=np.float64).mean())
        assert error <= tolerance * max(float(np.abs(theirs).max()), 1e-3)


def check_all(model: onnx.ModelProto) -> bool:
    """Run every rewrite; returns whether a tensor used the full range."""
    graph, shape = prepared(model), shape_of(model)
    x = np.random.default_rng(2).normal(size=(3, *shape)).astype(np.float32)
    expected = run_onnx(model, x)
    equalized = equalize(graph, random_factors(channel_groups(graph)))
    if shape[0] in COLORS:
        steps = Preprocess(
            resize=None, crop=shape[1:], interpolation="bilinear", mean=(0.4,) * shape[0], std=(0.3,) * shape[0],
            color=COLORS[shape[0]],
        )  # fmt: skip
        if reason_against(equalized, steps) is None:
            close(run_onnx(read_pixels(equalized, steps), x), expected)
    for each in (graph, equalized):
        close(run_onnx(each, x), expected)
        close(
            [
                np.concatenate(rows)
                for rows in zip(*(run_onnx(each, image[None]) for image in x), strict=True)
            ],
            expected,
        )
    return _check_full_range(graph, x)


def _check_full_range(graph: onnx.ModelProto, x: NDArray[np.float32]) -> bool:
    tensors, full = quantized_tensors(graph), full_range_tensors(graph, widest=EVERY)
    ranges = dict(zip(tensors, (float(np.abs(each).max()) for each in inner(graph, tensors, x)), strict=True))
    scales = {name: scale_of(amax, 255 if name in full else 127) for name, amax in ranges.items()}
    before = quantize(graph, scales, full_range=full)
    after = fold_zero_points(before)
    expected = run_onnx(before, x)
    # a sum at the edge of two integers may fall to the other side
    close(run_onnx(after, x), expected, 0.02)
    close(run_onnx(unfold_zero_points(after), x), expected, 0.02)
    return bool(full)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_random_networks_survive_every_rewrite(drawn: tuple[Writer, onnx.ModelProto]) -> None:
    writer, model = drawn
    assume(min(writer.sizes[writer.nodes[0].output[0]][1:]) > 1)
    check_all(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_survive_every_rewrite(family: str) -> None:
    full = check_all(FAMILIES[family]())
    assert full == (family not in ("mobile", "dense"))
