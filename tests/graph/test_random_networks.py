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
from rescompile.backends import get_backend
from rescompile.backends.base import BuildRequest
from rescompile.backends.openvino.runner import simulate
from rescompile.building.block_check import check_blocks
from rescompile.building.quantize import grouped_nodes
from rescompile.graph.equalize import equalize
from rescompile.graph.fold import fold
from rescompile.graph.full_range import fold_zero_points, unfold_zero_points
from rescompile.graph.half import half
from rescompile.graph.lint import lint
from rescompile.graph.pixels import read_pixels, reason_against
from rescompile.graph.placement import place
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.topology import full_range_tensors, quantized_tensors, reading_all_of_int8
from rescompile.graph.simplify import simplify
from rescompile.graph.structure import structure
from rescompile.manifest import Batch
from rescompile.metrics import relative_rms
from tests.calibration.single_operations import run_onnx
from tests.graph.random_graphs import FAMILIES, Writer, dags, networks
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
    assume(min(side for size in writer.sizes.values() for side in size) > 0)
    check_all(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_families_survive_every_rewrite(family: str) -> None:
    full = check_all(FAMILIES[family]())
    assert full == (family != "dense")


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=dags())
def test_random_dags_become_engines(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[Writer, onnx.ModelProto]
) -> None:
    """Simplified, named, placed, quantized and built for OpenVINO, whose engine is checked block by block."""
    model, folder, backend = drawn[1], tmp_path_factory.mktemp("dag"), get_backend("openvino")
    x = np.random.default_rng(2).normal(size=(3, *shape_of(model))).astype(np.float32)
    graph = prepared(model)
    exact = run_onnx(graph, x)
    close(exact, run_onnx(model, x))
    tensors = quantized_tensors(graph)
    amaxes = [max(float(np.abs(each).max()), 1e-3) for each in inner(graph, tensors, x)]
    scales = {name: scale_of(amax, 127) for name, amax in zip(tensors, amaxes, strict=True)}
    signed = reading_all_of_int8(graph, ())
    made = quantize(graph, scales, narrow=[node for node in grouped_nodes(graph) if node in signed])
    adds = sum(node.name.endswith(".add") for node in graph.graph.node)
    for rest, each in (("float32", made), ("float16", half(made))):
        broken = lint(each, precision="int8", rest_type=rest, residual_adds=adds)
        assert not broken, str(broken[0])
    onnx.save(made, folder / "model.onnx")
    batch = Batch(1, 2, 3)
    backend.build(
        BuildRequest(model=folder / "model.onnx", precision="int8", batch=batch, image_shape=shape_of(model)),
        folder,
    )
    assert check_blocks(folder, backend, made, x) > 0
    # the engine may differ from the graph by no more than the graph does from fp32
    engine = simulate(made, batch)
    for (name, found), expected, fp32 in zip(
        engine.tensors(x).items(), run_onnx(made, x), exact, strict=True
    ):
        allowed = max(0.05, relative_rms(fp32, expected))
        assert relative_rms(expected, found) <= allowed, name
