"""Every operation of the executor against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.errors import UnknownOperation
from calibration.execution.operations import OPERATIONS
from calibration.network import Network
from calibration.operators import OPERATORS, operator
from tests.calibration.single_operations import run_onnx, single

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def integers(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def numbers(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


def compare(model: onnx.ModelProto, x: NDArray[np.float32], *, drawn: bool = False) -> None:
    """Compare; attributes that were ``drawn`` may be refused by ONNX Runtime."""
    try:
        expected = run_onnx(model, x)
    except Exception:
        assume(not drawn)
        raise
    if not all(array.size for array in expected):
        return  # PyTorch has no windows that do not fit
    found = Network(model).run_all(torch.from_numpy(x))
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert tuple(ours.shape) == theirs.shape
        # the largest number of a window that lies in the padding alone: -inf in PyTorch, the lowest float elsewhere
        found_here = np.nan_to_num(ours.numpy(), nan=np.nan, posinf=np.inf, neginf=np.finfo(np.float32).min)
        np.testing.assert_allclose(found_here, theirs, rtol=2e-5, atol=2e-6)


X = normal(2, 6, 7, 9)
NORM = [normal(6, seed=1), normal(6, seed=2), normal(6, seed=3), np.abs(normal(6, seed=4))]
TRANSPOSED = {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}
UP = {"strides": [2, 2]}
CASES: dict[str, tuple[str, NDArray[np.float32], list[NDArray[Any] | None], dict[str, Any]]] = {
    **{
        op: (op, X, [], {})
        for op in (
            "Relu", "Abs", "Neg", "Sigmoid", "HardSigmoid", "HardSwish", "Softplus", "Softsign", "Tanh", "Erf", "Elu",
            "Selu", "Celu", "Exp", "Reciprocal", "Floor", "Ceil", "LeakyRelu", "ThresholdedRelu", "Mish", "Identity",
            "Dropout", "GlobalAveragePool", "GlobalMaxPool", "Softmax", "LogSoftmax", "Transpose", "Flatten", "Shape",
            "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ArgMax", "Clip", "Squeeze",
        )
    },
    "Sqrt": ("Sqrt", np.abs(X), [], {}),
    "Log": ("Log", np.abs(X), [], {}),
    "leaky": ("LeakyRelu", X, [], {"alpha": 0.3}),
    "elu": ("Elu", X, [], {"alpha": 0.7}),
    "hard sigmoid of another slope": ("HardSigmoid", X, [], {"alpha": 1 / 6, "beta": 0.4}),
    "relu6": ("Clip", 5 * X, [np.float32(0), np.float32(6)], {}),
    "clip from above": ("Clip", X, [None, np.float32(0.3)], {}),
    "prelu": ("PRelu", X, [normal(6, 1, 1)], {}),
    "add": ("Add", X, [normal(6, 1, 1)], {}),
    "sub": ("Sub", X, [normal(1, 6, 1, 1)], {}),
    "mul": ("Mul", X, [normal(2, 6, 1, 1)], {}),
    "div": ("Div", X, [numbers(3)], {}),
    "pow": ("Pow", X, [numbers(2)], {}),
    "sum": ("Sum", X, [normal(9), normal(2, 6, 7, 1)], {}),
    "max": ("Max", X, [normal(9)], {}),
    "min": ("Min", X, [normal(9)], {}),
    "mean": ("Mean", X, [normal(9), numbers(1)], {}),
    "cast": ("Cast", X, [], {"to": 1}),
    "softmax of channels": ("Softmax", X, [], {"axis": 1}),
    "arg max of channels": ("ArgMax", X, [], {"axis": 1, "keepdims": 0}),
    "matmul": ("MatMul", normal(3, 4, 5), [normal(5, 6)], {}),
    "gemm": ("Gemm", normal(4, 5), [normal(5, 3), normal(3)], {}),
    "gemm transposed": ("Gemm", normal(5, 4), [normal(3, 5), normal(4, 1)], TRANSPOSED),
    "gemm without bias": ("Gemm", normal(4, 5), [normal(3, 5)], {"transB": 1}),
    "batch norm": ("BatchNormalization", X, NORM, {"epsilon": 1e-3}),
    "batch norm of features": ("BatchNormalization", normal(3, 6), NORM, {}),
    "instance norm": ("InstanceNormalization", X, [normal(6), normal(6)], {}),
    "layer norm": ("LayerNormalization", X, [normal(9), normal(9)], {}),
    "layer norm of an image": ("LayerNormalization", X, [normal(6, 7, 9)], {"axis": 1}),
    "LRN": ("LRN", X, [], {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 2.0}),
    "mean of the plane": ("ReduceMean", X, [integers(2, 3)], {"keepdims": 0}),
    "mean of the channels": ("ReduceMean", X, [integers(1)], {}),
    "largest channel": ("ReduceMax", X, [integers(-3)], {}),
    "no axes": ("ReduceSum", X, [], {"noop_with_empty_axes": 1}),
    "reshape": ("Reshape", X, [integers(0, 2, 3, -1)], {}),
    "flatten all": ("Flatten", X, [], {"axis": 0}),
    "flatten pairs": ("Flatten", X, [], {"axis": -2}),
    "squeeze": ("Squeeze", normal(2, 6, 1, 1), [integers(-1, 2)], {}),
    "unsqueeze": ("Unsqueeze", X, [integers(0, -1)], {}),
    "transpose": ("Transpose", X, [], {"perm": [0, 2, 3, 1]}),
    "expand": ("Expand", normal(2, 6, 1, 1), [integers(1, 1, 3, 4)], {}),
    "tile": ("Tile", X, [integers(1, 2, 1, 3)], {}),
    "gather": ("Gather", X, [integers(-1, 0, 3)], {"axis": 1}),
    "gather one of a vector": ("Gather", normal(5), [np.array(2)], {}),
    "gather one": ("Gather", X, [np.array(2)], {"axis": 2}),
    "depth to space": ("DepthToSpace", normal(1, 8, 3, 5), [], {"blocksize": 2}),
    "depth to space, CRD": ("DepthToSpace", normal(1, 8, 3, 5), [], {"blocksize": 2, "mode": "CRD"}),
    "space to depth": ("SpaceToDepth", normal(1, 2, 4, 6), [], {"blocksize": 2}),
    "slice": ("Slice", X, [integers(1, -4), integers(5, 2**62), integers(1, 3), integers(2, 1)], {}),
    "slice backwards": ("Slice", X, [integers(-1, 5), integers(-(2**62), 1), integers(2, 3), integers(-2, -1)], {}),
    "slice of the first axes": ("Slice", X, [integers(0, 2), integers(1, 4)], {}),
    "split": ("Split", X, [integers(1, 3, 2)], {"axis": 1, "outputs": 3}),
    "split evenly": ("Split", X, [], {"axis": -1, "outputs": 2, "num_outputs": 2}),
    "concat": ("Concat", X, [normal(2, 3, 7, 9)], {"axis": 1}),
    "pad": ("Pad", X, [integers(0, 1, 2, 0, 0, 2, 0, -3)], {}),
    "pad with a value": ("Pad", X, [integers(1, 0, 2, 1), np.float32(-2), integers(-1, 2)], {}),
    "reflect": ("Pad", X, [integers(0, 0, 3, 1, 0, 0, 2, 4)], {"mode": "reflect"}),
    "edge": ("Pad", X, [integers(0, 0, 3, 1, 0, 0, 2, 4)], {"mode": "edge"}),
    "wrap": ("Pad", X, [integers(0, 0, 3, 1, 0, 0, 2, 4)], {"mode": "wrap"}),
    "conv of one axis": ("Conv", normal(2, 4, 11), [normal(6, 2, 3), normal(6)], {"group": 2, "pads": [0, 2]}),
    "conv transpose to a size": ("ConvTranspose", X, [normal(6, 2, 3, 3)], {**UP, "output_shape": [14, 18]}),
    "conv transpose to the same": ("ConvTranspose", X, [normal(6, 2, 3, 3)], {**UP, "auto_pad": "SAME_UPPER"}),
    "quantize": ("QuantizeLinear", 40 * X, [np.float32(0.5), np.int8(-128)], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operation(case: str) -> None:
    op, x, inputs, attributes = CASES[case]
    compare(single(op, x, inputs, **attributes), x)


@pytest.mark.parametrize(("op", "attributes"), [("Gelu", {}), ("Gelu", {"approximate": "tanh"})])
def test_operation_of_opset_20(op: str, attributes: dict[str, Any]) -> None:
    compare(single(op, X, opset=20, **attributes), X)


@pytest.mark.parametrize("opset", [18, 21])
def test_group_norm(opset: int) -> None:
    size = 3 if opset == 18 else 6
    model = single("GroupNormalization", X, [normal(size), normal(size)], opset=opset, num_groups=3)
    factors, offsets = (
        np.broadcast_to(normal(size).repeat(6 // size)[:, None, None], (6, 1, 1)) for _ in range(2)
    )
    parts = X.reshape(2, 3, -1)
    spread = np.sqrt(parts.var(axis=2, keepdims=True) + 1e-5)
    expected = ((parts - parts.mean(axis=2, keepdims=True)) / spread).reshape(X.shape) * factors + offsets
    np.testing.assert_allclose(Network(model).run(torch.from_numpy(X)), expected, atol=1e-5)


def test_constants_are_computed_once() -> None:
    model = single("Reshape", X, [integers(2, -1)])
    constant = onnx.helper.make_node("Constant", [], ["c0"], value_ints=[2, -1])
    filled = onnx.helper.make_node("ConstantOfShape", ["c0"], ["unused"])
    model.graph.node.insert(0, constant)
    del model.graph.initializer[:]
    assert [node.op for node in Network(model).nodes] == ["Reshape"]
    assert filled.op_type in OPERATIONS
    compare(model, X)


SIZES = st.integers(1, 9)
AUTO = st.sampled_from(["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
PAIR = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def window(draw: st.DrawFn, *, dilated: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {"kernel_shape": list(draw(PAIR)), "strides": list(draw(PAIR))}
    if dilated:
        found["dilations"] = list(draw(PAIR))
    auto = draw(AUTO)
    if auto == "NOTSET":
        found["pads"] = [draw(st.integers(0, taps - 1)) for taps in found["kernel_shape"] * 2]
    else:
        found["auto_pad"] = auto
    return found


def fits(attributes: dict[str, Any], *size: int) -> bool:
    """Whether at least one window lies within the padded input; what is made without one is not defined."""
    pads = attributes.get("pads", [0] * 4)
    dilations = attributes.get("dilations", [1, 1])
    if attributes.get("auto_pad", "VALID") != "VALID":  # pools would start behind the first values
        return all(
            taps >= step for taps, step in zip(attributes["kernel_shape"], attributes["strides"], strict=True)
        )
    return all(
        size[axis] + pads[axis] + pads[axis + 2] > (taps - 1) * dilations[axis]
        for axis, taps in enumerate(attributes["kernel_shape"])
    )


@FEW
@given(window(), SIZES, SIZES, st.sampled_from([1, 2, 4]))
def test_convolution(attributes: dict[str, Any], height: int, width: int, groups: int) -> None:
    if "auto_pad" in attributes:
        attributes["dilations"] = [1, 1]
    x, weight = normal(2, 4, height, width), normal(8, 4 // groups, *attributes["kernel_shape"])
    compare(single("Conv", x, [weight, normal(8)], group=groups, **attributes), x, drawn=True)


@FEW
@given(window(), SIZES, SIZES, st.booleans())
def test_max_pool(attributes: dict[str, Any], height: int, width: int, ceil: bool) -> None:
    if "auto_pad" in attributes:
        attributes["dilations"] = [1, 1]
    assume(fits(attributes, height, width))
    x = normal(2, 3, height, width)
    compare(single("MaxPool", x, ceil_mode=int(ceil), **attributes), x, drawn=True)


@FEW
@given(window(dilated=False), SIZES, SIZES, st.booleans(), st.booleans())
def test_average_pool(
    attributes: dict[str, Any], height: int, width: int, ceil: bool, count_padding: bool
) -> None:
    assume(fits(attributes, height, width))
    x = normal(2, 3, height, width)
    compare(
        single("AveragePool", x, ceil_mode=int(ceil), count_include_pad=int(count_padding), **attributes),
        x,
        drawn=True,
    )


@FEW
@given(window(), SIZES, SIZES, st.tuples(st.integers(0, 1), st.integers(0, 1)))
def test_transposed_convolution(
    attributes: dict[str, Any], height: int, width: int, extra: tuple[int, int]
) -> None:
    assume("pads" in attributes)
    assume(all(more < stride for more, stride in zip(extra, attributes["strides"], strict=True)))
    x, weight = normal(2, 4, height, width), normal(4, 3, *attributes["kernel_shape"])
    compare(
        single("ConvTranspose", x, [weight, normal(6)], group=2, output_padding=list(extra), **attributes),
        x,
        drawn=True,
    )


@FEW
@given(
    st.sampled_from(["nearest", "linear"]),
    st.sampled_from(["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"]),
    st.sampled_from(["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]),
    SIZES,
    SIZES,
    st.tuples(st.sampled_from([0.5, 1.0, 1.5, 2.0, 3.0]), st.sampled_from([0.7, 1.0, 2.0])),
    st.booleans(),
)
def test_resize(
    mode: str, where: str, nearest: str, height: int, width: int, scales: tuple[float, float], by_size: bool
) -> None:
    x = normal(2, 3, height, width)
    sizes = [int(np.floor(size * scale)) for size, scale in zip((height, width), scales, strict=True)]
    assume(min(sizes) > 0)
    how = [None, None, integers(2, 3, *sizes)] if by_size else [None, numbers(1, 1, *scales)]
    compare(
        single("Resize", x, how, mode=mode, coordinate_transformation_mode=where, nearest_mode=nearest),
        x,
        drawn=True,
    )


@FEW
@given(
    st.lists(
        st.tuples(st.integers(-12, 12), st.integers(-12, 12), st.sampled_from([-3, -1, 1, 2])),
        min_size=2,
        max_size=2,
    )
)
def test_slice(cuts: list[tuple[int, int, int]]) -> None:
    starts, ends, steps = (integers(*values) for values in zip(*cuts, strict=True))
    model = single("Slice", X, [starts, ends, integers(3, 2), steps])
    compare(model, X, drawn=True)


def test_an_unknown_operation_and_an_unknown_use_are_named() -> None:
    for model, words in (
        (single("Sinh", X), "'Sinh' is a Sinh, which only ONNX Runtime executes here"),
        (single("Resize", X, [None, numbers(1, 1, 2, 2)], mode="cubic"), "Resize with mode cubic"),
    ):
        with pytest.raises(UnknownOperation, match=words):
            Network(model).run(torch.from_numpy(X))


def test_the_table_and_the_executor_agree() -> None:
    assert {name for name, entry in OPERATORS.items() if entry.executable} == set(OPERATIONS)
    assert not operator("Sinh").executable


@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_the_table_is_right(op: str) -> None:
    """The properties hold for a case of the operator that this file executes."""
    entry = OPERATORS[op]
    cases = [case for case in CASES.values() if case[0] == op and case[3].get("outputs", 1) == 1]
    for _, x, inputs, attributes in cases:
        model = single(op, x, inputs, **attributes)
        y = run_onnx(model, x)[0]
        if entry.never_negative:
            assert (y >= 0).all()
        negative = any((each < 0).any() for each in inputs if each is not None and each.dtype == np.float32)
        if entry.keeps_sign and not negative and op not in ("Gemm", "MatMul", "QuantizeLinear"):
            assert (run_onnx(single(op, np.abs(x), inputs, **attributes), np.abs(x))[0] >= 0).all()
        if entry.homogeneous and entry.channels != "tied" and "Linear" not in op:
            filled = op == "Pad" and len(inputs) > 1
            if not filled and op != "Concat":
                np.testing.assert_allclose(run_onnx(model, 3 * x)[0], 3 * y, rtol=1e-4, atol=1e-5)
        if entry.moves and op not in ("Concat", "Pad"):
            assert np.isin(y, x).all()
        if entry.elementwise and not inputs:
            assert y.shape == x.shape
