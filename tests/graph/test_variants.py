"""Networks of other families: the same answers as their modules, blocks and reasons as in the table, INT8 engines."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rescompile.backends import get_backend
from rescompile.backends.base import BuildRequest
from rescompile.backends.openvino.runner import simulate
from rescompile.building.block_check import boundaries, check_blocks
from rescompile.graph.fold import fold
from rescompile.graph.half import half
from rescompile.graph.lint import lint
from rescompile.graph.placement import place
from rescompile.graph.restore import restore
from rescompile.graph.shared.block_names import block_of
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.metadata import float_reasons
from rescompile.graph.shared.topology import block_outputs
from rescompile.graph.simplify import simplify
from rescompile.graph.structure import structure
from rescompile.manifest import Batch
from tests.graph.conftest import run
from tests.graph.described_variants import described, images, opened, quantized, stored
from tests.graph.variants import VARIANTS, answers, shape, variant

BATCH = Batch(1, 2, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variants")


def relative(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def asked(name: str, graph: onnx.ModelProto, folder: Path, target: str | None = None) -> BuildRequest:
    """The request to build an INT8 engine of ``graph``."""
    path = folder / "model.onnx"
    onnx.save(graph, path)
    return BuildRequest(model=path, precision="int8", batch=BATCH, image_shape=shape(name), target=target)


def test_every_variant_is_in_the_table() -> None:
    assert list(stored()) == list(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_graph_computes_what_the_module_computes(name: str, batch: int, folder: Path) -> None:
    graph, x = opened(name, folder).graph, images(name, batch)
    outputs = [output.name for output in graph.graph.output]
    found = run(graph, x, outputs)
    for output, expected in zip(outputs, answers(variant(name)[0], x), strict=True):
        assert relative(expected, found[output]) < 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_blocks_and_float_operations_are_those_of_the_table(name: str, folder: Path) -> None:
    assert described(name, folder) == stored()[name], (
        "python -m tests.graph.described_variants writes it anew"
    )
    graph = opened(name, folder).graph
    known = {*block_outputs(graph), "stem"}
    assert {block_of(node.name) for node in graph.graph.node if node.op_type != "Identity"} <= known


@pytest.mark.parametrize("name", VARIANTS)
def test_int8_graphs_keep_the_contract_also_with_blocks_in_fp16(name: str, folder: Path) -> None:
    source, graph = opened(name, folder), quantized(name, folder)
    adds, some = source.residual_adds, tuple(block_outputs(source.graph))[1:2]
    mixed = restore(graph, source.graph, some)
    for model, blocks in ((graph, ()), (mixed, some)):
        for rest in ("float32", "float16"):
            made = half(model) if rest == "float16" else model
            found = lint(made, precision="int8", rest_type=rest, residual_adds=adds, fp16_blocks=blocks)
            assert not found, str(found[0])
    assert not lint(source.graph, precision="fp32", rest_type="float32", residual_adds=adds)


@pytest.mark.parametrize("name", VARIANTS)
def test_openvino_computes_every_block_as_the_int8_graph_says(
    name: str, folder: Path, tmp_path: Path
) -> None:
    graph, x, backend = quantized(name, folder), images(name), get_backend("openvino")
    backend.build(asked(name, graph, tmp_path), tmp_path)
    compared = check_blocks(tmp_path, backend, graph, x)
    assert compared == len(boundaries(read(graph)))
    expected = run(graph, x)[graph.graph.output[0].name]
    exact = answers(variant(name)[0], x)[0]
    engine = simulate(graph, BATCH)
    assert list(engine.tensors(x)) == [output.name for output in graph.graph.output]
    assert relative(expected, engine(x)) < max(0.05, relative(exact, expected))
    assert relative(exact, expected) < 0.2


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("name", VARIANTS)
def test_tensorrt_builds_the_int8_graph(name: str, folder: Path, tmp_path: Path) -> None:
    graph = half(quantized(name, folder))
    payload = get_backend("tensorrt-rtx").build(asked(name, graph, tmp_path, "sm_89"), tmp_path)
    assert (tmp_path / payload.files[0]).stat().st_size > 0


def test_a_batch_that_the_exporter_fixed_is_freed() -> None:
    module, model = variant("mlp-head", batch=4)
    graph = place(structure(fold(simplify(model).graph))[0])
    x = images("mlp-head", 3)
    assert relative(answers(module, x)[0], run(graph, x)["logits"]) < 1e-4


@st.composite
def residual_networks(draw: st.DrawFn) -> tuple[onnx.ModelProto, list[int]]:
    """A graph of residual blocks with 0 to 1 convolutions in their shortcuts, and where stages open."""
    rng, width = np.random.default_rng(draw(st.integers(0, 99))), 8
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def add(op: str, *inputs: str, weight: tuple[int, ...] | None = None, **attributes: object) -> str:
        name = f"t{len(nodes)}"
        given = list(inputs)
        if weight:
            values = (rng.standard_normal(weight) / np.sqrt(np.prod(weight[1:]))).astype(np.float32)
            constants.append(numpy_helper.from_array(values, f"w{len(nodes)}"))
            given.append(constants[-1].name)
        nodes.append(helper.make_node(op, given, [name], name=f"n{len(nodes)}", **attributes))
        return name

    def convolved(x: str, kernel: int, inputs: int = width) -> str:
        return add("Conv", x, weight=(width, inputs, kernel, kernel), pads=[kernel // 2] * 4)

    x = add("Relu", convolved("image", 3, 3))
    opens = []
    for _ in range(draw(st.integers(1, 4))):
        branch, shortcut = x, x
        for _ in range(draw(st.integers(2, 4))):
            branch = convolved(branch if branch == x else add("Relu", branch), draw(st.sampled_from([1, 3])))
        if draw(st.booleans()):
            shortcut = convolved(x, 1)
        opens.append(int(shortcut != x))
        sides = (branch, shortcut) if draw(st.booleans()) else (shortcut, branch)
        x = add("Relu", add("Add", *sides))
    x = add("Flatten", add("GlobalAveragePool", x))
    add("Gemm", x, weight=(5, width), transB=1)
    nodes[-1].output[0] = "scores"
    value = helper.make_tensor_value_info
    ends = [value("image", 1, ["N", 3, 8, 8])], [value("scores", 1, ["N", 5])]
    return helper.make_model(
        helper.make_graph(nodes, "g", *ends, constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    ), opens


@settings(max_examples=25, deadline=None)
@given(residual_networks())
def test_any_chain_of_residual_blocks_is_found(made: tuple[onnx.ModelProto, list[int]]) -> None:
    model, opens = made
    graph, found = structure(fold(simplify(model).graph))
    stage, place_, names = 1, 0, []
    for opened_ in opens:
        if opened_ and place_:
            stage, place_ = stage + 1, 0
        names.append(f"layer{stage}.{place_}")
        place_ += 1
    assert list(found.blocks) == ["stem", *names, "fc"]
    assert found.residual_adds == len(opens)
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8), dtype=np.float32)
    fed = onnx.ModelProto()
    fed.CopyFrom(model)
    fed.graph.node[0].input[0] = fed.graph.input[0].name = "input"
    assert relative(run(fed, x)["scores"], run(graph, x)["logits"]) < 1e-4
    assert not float_reasons(place(graph))
