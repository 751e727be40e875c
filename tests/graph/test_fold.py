import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rescompile.errors import GraphError
from rescompile.graph.fold import fold
from tests.graph.conftest import exported, folded, run


def conv_bn(**changed: np.ndarray) -> onnx.ModelProto:
    """One convolution with a bias and one batch norm, with random or given parameters."""
    rng = np.random.default_rng(0)
    params = {
        "w": rng.standard_normal((5, 3, 3, 3)), "b": rng.standard_normal(5), "gamma": rng.standard_normal(5),
        "beta": rng.standard_normal(5), "mean": rng.standard_normal(5) * 100, "var": rng.random(5) * 1e-3,
    }  # fmt: skip
    params |= changed
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in params.items()]
    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["y"], name="conv1", pads=[1] * 4),
        helper.make_node(
            "BatchNormalization", ["y", "gamma", "beta", "mean", "var"], ["z"], name="bn1", epsilon=1e-3
        ),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("input", 1, ["N", 3, 6, 6])], [value("z", 1, None)], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def test_folding_keeps_the_function_with_a_bias_negative_gammas_and_a_custom_epsilon() -> None:
    model, x = conv_bn(), np.random.default_rng(1).standard_normal((2, 3, 6, 6), dtype=np.float32)
    small = fold(model)
    assert [node.op_type for node in small.graph.node] == ["Conv"]
    expected, found = run(model, x)["z"], run(small, x)[small.graph.output[0].name]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_every_convolution_has_a_bias_and_no_batch_norm_is_left() -> None:
    nodes = folded("resnet18").graph.node
    assert all(len(node.input) == 3 for node in nodes if node.op_type == "Conv")
    assert not [node for node in nodes if node.op_type == "BatchNormalization"]


def test_folding_leaves_its_input_alone() -> None:
    before = exported("resnet18").SerializeToString(deterministic=True)
    fold(exported("resnet18"))
    assert exported("resnet18").SerializeToString(deterministic=True) == before


def test_a_variance_that_cannot_be_is_named_with_its_channel() -> None:
    with pytest.raises(GraphError, match=r"'bn1' has variance.*channel 3.*positive"):
        fold(conv_bn(var=np.array([1, 1, 1, -2, 1])))


def test_a_weight_that_overflows_when_folded_is_named() -> None:
    with pytest.raises(GraphError, match=r"weight of 'conv1' is not finite after folding"):
        fold(conv_bn(w=np.full((5, 3, 3, 3), 3e38), gamma=np.full(5, 1e3)))


def test_a_batch_norm_without_its_own_convolution_stays() -> None:
    model = conv_bn()
    model.graph.node.append(helper.make_node("Relu", ["y"], ["other"], name="peek"))
    model.graph.output.append(helper.make_tensor_value_info("other", 1, None))
    assert [node.op_type for node in fold(model).graph.node] == ["Conv", "BatchNormalization", "Relu"]


def test_parameters_that_are_computed_are_refused() -> None:
    model = conv_bn()
    model.graph.node.insert(0, helper.make_node("Abs", ["gamma"], ["computed"], name="abs"))
    model.graph.node[2].input[1] = "computed"
    with pytest.raises(GraphError, match=r"'bn1' takes 'computed'.*must be constants"):
        fold(model)


def arithmetic(
    op: str, constant: np.ndarray, *, first: bool = False, linear: bool = False
) -> onnx.ModelProto:
    """A convolution or linear layer, and ``op`` with a constant."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 3) if linear else (5, 3, 3, 3)).astype(np.float32)
    constants = {
        "w": weight,
        "b": rng.standard_normal(5).astype(np.float32),
        "c": constant.astype(np.float32),
    }
    kind, options = ("Gemm", {"transB": 1}) if linear else ("Conv", {"pads": [1] * 4})
    nodes = [
        helper.make_node(kind, ["input", "w", "b"], ["y"], name="conv1", **options),
        helper.make_node(op, ["c", "y"] if first else ["y", "c"], ["z"], name="scaled"),
    ]
    value = helper.make_tensor_value_info
    shape = ["N", 3] if linear else ["N", 3, 6, 6]
    graph = helper.make_graph(
        nodes, "g", [value("input", 1, shape)], [value("z", 1, None)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


CHANNELS = np.array([0.5, -2, 3, 1.5, -0.25])


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("shape", [(5, 1, 1), (1, 5, 1, 1), (1, 1, 1, 1), ()])
def test_arithmetic_by_channel_is_folded(op: str, first: bool, shape: tuple[int, ...]) -> None:
    constant = CHANNELS[:1].reshape(shape) if np.prod(shape) == 1 else CHANNELS.reshape(shape)
    model, x = arithmetic(op, constant, first=first), np.random.default_rng(1).normal(size=(2, 3, 6, 6))
    small, x = fold(model), x.astype(np.float32)
    kept = ["Conv", "Div"] if (op, first) == ("Div", True) else ["Conv"]  # one divided by it is not affine
    assert [node.op_type for node in small.graph.node] == kept
    assert np.allclose(run(model, x)["z"], run(small, x)[small.graph.output[0].name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (1,)])
def test_arithmetic_behind_a_linear_layer_is_folded(shape: tuple[int, ...]) -> None:
    constant = CHANNELS[: int(np.prod(shape))].reshape(shape)
    model, x = arithmetic("Mul", constant, linear=True), np.random.default_rng(1).normal(size=(2, 3))
    small, x = fold(model), x.astype(np.float32)
    assert [node.op_type for node in small.graph.node] == ["Gemm"]
    assert np.allclose(run(model, x)["z"], run(small, x)[small.graph.output[0].name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "constant"),
    [
        ("Add", np.ones((5, 6, 6))),  # another one for each pixel
        ("Mul", np.ones(6)),  # along the width
        ("Mul", np.ones((2, 1, 1, 1))),  # another one for each image
        ("Add", np.ones((1, 1, 1, 1, 1))),  # one dimension more
        ("Div", np.array([1.0, 0, 1, 1, 1]).reshape(5, 1, 1)),
    ],
)
def test_other_arithmetic_stays(op: str, constant: np.ndarray) -> None:
    assert [node.op_type for node in fold(arithmetic(op, constant)).graph.node] == ["Conv", op]
