"""Each spelling of an exporter is read as what it means, and what cannot be read gets one sentence."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rescompile.building.fidelity import check_against_file
from rescompile.errors import GraphError
from rescompile.graph.fold import fold
from rescompile.graph.simplify import Simplified, simplify
from rescompile.graph.structure import Structure, structure

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w1": RNG.standard_normal((8, 3, 3, 3)) / 5,
    "w2": RNG.standard_normal((8, 8, 3, 3)) / 8,
    "w3": RNG.standard_normal((5, 8)),
}


def small(
    body: list[onnx.NodeProto],
    *,
    opset: int = 17,
    kind: int = onnx.TensorProto.FLOAT,
    shape: tuple[int | str, ...] = ("N", 3, 8, 8),
    first: str = "x",
    inner: str = "a",
    **constants: NDArray[Any],
) -> onnx.ModelProto:
    """``body`` from ``x`` to ``first``, two convolutions with an addition, pool and classifier.

    ``inner`` is the tensor that the second convolution reads.
    """
    node = helper.make_node
    pool = [node("GlobalAveragePool", ["s"], ["p"]), node("Flatten", ["p"], ["f"])]
    nodes = [
        *(each for each in body if "a" not in each.input),
        node("Conv", [first, "w1"], ["c"], pads=[1] * 4),
        node("Relu", ["c"], ["a"]),
        *(each for each in body if "a" in each.input),
        node("Conv", [inner, "w2"], ["b"], pads=[1] * 4 if inner == "a" else [0] * 4),
        node("Add", ["a", "b"], ["s"]),
        *pool,
        node("Gemm", ["f", "w3"], ["y"], transB=1),
    ]
    values = {name: value.astype(np.float32) for name, value in WEIGHTS.items()} | constants
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def read(
    model: onnx.ModelProto, size: tuple[int, int] | None = None
) -> tuple[Simplified, Structure, list[str]]:
    """The simplified graph, after it was compared with the file."""
    found = simplify(model, size=size)
    named, blocks = structure(fold(found.graph))
    check_against_file(named, model, found.intake, blocks.origins, found.range)
    return found, blocks, [node.op_type for node in named.graph.node]


PLAIN = ["Conv", "Relu", "Conv", "Add", "GlobalAveragePool", "Flatten", "Gemm"]


@pytest.mark.parametrize("mode", ["reflect", "edge", "constant"])
def test_padding_is_what_the_file_says(mode: str) -> None:
    pad = helper.make_node("Pad", ["a", "amounts", "value"], ["padded"], mode=mode)
    amounts = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    for value in (0.0, 0.5):
        model = small([pad], inner="padded", amounts=amounts, value=np.float32(value).reshape(()))
        ops = read(model)[2]
        assert ("Pad" in ops) == (mode != "constant" or value != 0)


@pytest.mark.parametrize("opset", [9, 11, 13])
def test_older_opsets_are_converted(opset: int) -> None:
    model = small([], opset=opset, bias=np.ones(5, np.float32))
    model.graph.node[-1].input.append("bias")  # optional from opset 11 on
    assert read(model)[2] == PLAIN


def test_a_sum_of_two_is_an_add_and_equal_initializers_may_be_shared_through_identity() -> None:
    model = small([helper.make_node("Identity", ["w1"], ["again"])])
    for node in model.graph.node:
        if node.op_type == "Add":
            node.op_type = "Sum"
        if node.input[-1] == "w1" and node.op_type == "Conv":
            node.input[1] = "again"
    model.graph.node.insert(0, model.graph.node.pop(0))
    assert read(model)[2] == PLAIN


def test_same_padding_is_written_as_numbers() -> None:
    model = small([])
    conv = next(node for node in model.graph.node if node.output[0] == "b")
    del conv.attribute[:]
    conv.attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))
    found, _, ops = read(model)
    made = next(node for node in found.graph.graph.node if node.output[0] == "b")
    assert ops == PLAIN
    assert next(list(a.ints) for a in made.attribute if a.name == "pads") == [1, 1, 1, 1]


def test_an_output_of_one_number_for_each_image_is_a_row_of_one() -> None:
    model = small([], w3=RNG.standard_normal((1, 8)).astype(np.float32), axis=np.array([1]))
    model.graph.node[-1].output[0] = "row"
    model.graph.node.append(helper.make_node("Squeeze", ["row", "axis"], ["y"]))
    assert read(model)[2] == PLAIN


def test_an_average_pool_over_everything_is_the_global_pool() -> None:
    model = small([])
    pool = next(node for node in model.graph.node if node.op_type == "GlobalAveragePool")
    pool.op_type = "AveragePool"
    pool.attribute.append(helper.make_attribute("kernel_shape", [8, 8]))
    assert read(model)[2] == PLAIN


@pytest.mark.parametrize("bounds", [{"start": 0, "end": 1}, {"end": -3}, {"start": -4, "end": 1}])
def test_a_part_of_a_shape_is_that_part(bounds: dict[str, int]) -> None:
    gate = [
        helper.make_node("GlobalAveragePool", ["a"], ["mean"]),
        helper.make_node("Shape", ["a"], ["batch"], **bounds),
        helper.make_node("Concat", ["batch", "sizes"], ["shape"], axis=0),
        helper.make_node("Expand", ["mean", "shape"], ["wide"]),
        helper.make_node("Mul", ["a", "wide"], ["gated"]),
    ]
    model = small([], sizes=np.array([8, 8, 8]))
    last = next(index for index, node in enumerate(model.graph.node) if "w2" in node.input)
    model.graph.node[last].input[0] = "gated"
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:last], *gate, *nodes[last:]])
    read(model)


def test_a_convolution_that_onnx_runtime_fused_is_read() -> None:
    model = small([])
    conv, relu = model.graph.node[:2]
    conv.op_type, conv.domain, conv.output[0] = "FusedConv", "com.microsoft", "a"
    conv.attribute.append(helper.make_attribute("activation", "Relu"))
    model.graph.node.remove(relu)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert read(model)[2] == PLAIN


def test_another_operator_of_onnx_runtime_is_refused() -> None:
    model = small([])
    model.graph.node[1].domain = "com.microsoft"
    with pytest.raises(GraphError, match=r"com\.microsoft\.Relu.*before ONNX Runtime"):
        simplify(model)


def test_sizes_that_the_file_leaves_open_are_given() -> None:
    model = small([], shape=("N", 3, "H", "W"))
    found, _, _ = read(model, (8, 12))
    assert [dim.dim_value for dim in found.graph.graph.input[0].type.tensor_type.shape.dim][1:] == [3, 8, 12]


def test_bytes_are_read_without_a_normalization_of_ours() -> None:
    cast = helper.make_node("Cast", ["x"], ["float"], to=1)
    found, _, ops = read(small([cast], first="float", kind=onnx.TensorProto.UINT8))
    assert (found.range, ops) == (255.0, PLAIN)


def test_rows_of_pixels_are_read_as_planes() -> None:
    body = [
        helper.make_node("Cast", ["x"], ["float"], to=1),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    model = small(body, first="planes", kind=onnx.TensorProto.UINT8, shape=("N", 8, 8, 3))
    found, _, ops = read(model)
    assert (found.intake.nhwc, ops) == (True, PLAIN)


@pytest.mark.parametrize(
    ("mean", "std", "limit"), [(123.0, 58.0, 255.0), (0.45, 0.22, 1.0), (127.5, 127.5, 255.0)]
)
def test_a_normalization_inside_is_kept_and_tells_the_range(mean: float, std: float, limit: float) -> None:
    shape = (1, 3, 1, 1)
    body = [helper.make_node("Sub", ["x", "mean"], ["d"]), helper.make_node("Div", ["d", "std"], ["n"])]
    constants = {"mean": np.full(shape, mean, np.float32), "std": np.full(shape, std, np.float32)}
    found, _, ops = read(small(body, first="n", **constants))
    assert found.range == limit
    assert ops == ["Sub", "Div", *PLAIN]


def test_a_network_in_training_mode_is_refused() -> None:
    model = small([helper.make_node("BatchNormalization", ["a", "g", "g", "g", "g"], ["n", "m", "v"], training_mode=1)],
                  inner="n", g=np.ones(8, np.float32))  # fmt: skip
    with pytest.raises(GraphError, match="computes as in training"):
        simplify(model)


def test_a_graph_that_computes_something_else_is_refused_with_its_first_node() -> None:
    model = small([])
    found = simplify(model)
    named, blocks = structure(fold(found.graph))
    for tensor in named.graph.initializer:
        if tensor.name == "unit2.conv1.weight" or tensor.name.endswith("layer1.0.conv1.weight"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.1, tensor.name))
    with pytest.raises(GraphError, match=r"differs from the file by .*first at 'b'"):
        check_against_file(named, model, found.intake, blocks.origins, found.range)
