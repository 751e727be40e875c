"""NumPy, ONNX Runtime and the kernels quantize alike: bit for bit the same, and by the formula.

    q = clamp(round_half_even(x / scale), -128, 127),   x ~ q * scale

Values are drawn where forms could differ: ties, the ends of int8, beyond them, infinities, zeros of both signs and
denormals; scales from 2**-24 to 65504. The kernels take ``x / scale`` as the bias of a convolution of zeros, so that
it is their epilogue that rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper

from calibration.scales import MAX_SCALE, MIN_SCALE, dequantize, quantize, scales_of
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops.inference import conv_int8
from fused_kernels.tiles import Tile
from tests.fused_kernels.conftest import HAS_TRITON, kernels, reference, tiles

Floats = NDArray[np.float32]
Ints = NDArray[np.int8]

EVERY_INT8 = np.arange(-128, 128).astype(np.int8)
DENORMAL = float(np.float32(2.0**-149))
HUGE = float(np.finfo(np.float32).max)
FIXED = [0.0, -0.0, DENORMAL, -DENORMAL, HUGE, -HUGE, np.inf, -np.inf]
FUZZ = settings(max_examples=60, deadline=None)
SLOW_FUZZ = settings(max_examples=25, deadline=None)

SCALES = st.one_of(
    st.sampled_from([MIN_SCALE, 2.0**-14, 0.5, 1.0, MAX_SCALE]),
    st.integers(1, 0x7BFF).map(lambda bits: float(np.array(bits, np.uint16).view(np.float16))),
)
STEPS = st.one_of(
    st.integers(-2000, 2000).map(lambda tenths: tenths / 10),
    st.integers(-300, 300).map(lambda halves: halves / 2),
    st.floats(width=32, allow_nan=False),
)
"""Values in units of the scale; half of them are whole numbers or ties."""


@st.composite
def values(draw: st.DrawFn) -> tuple[Floats, float]:
    """Numbers [n], and a scale that suits some of them."""
    scale = draw(SCALES)
    steps = np.array(draw(st.lists(STEPS, min_size=1, max_size=24)), np.float64)
    with np.errstate(over="ignore"):
        return np.concatenate([(steps * scale).astype(np.float32), np.array(FIXED, np.float32)]), scale


def numpy_form(x: Floats, scale: Any) -> Ints:
    with np.errstate(over="ignore"):  # 3e38 / 2**-24 is infinite, which saturates as it should
        return quantize(x, scale)


@cache
def session(operator: str, rank: int, *, per_channel: bool) -> ort.InferenceSession:
    """One operator with its scale as an input, and nothing optimized."""
    fed, made = (TensorProto.FLOAT, TensorProto.INT8)[:: 1 if operator == "QuantizeLinear" else -1]
    channels = ["k"] if per_channel else []
    inputs = [
        helper.make_tensor_value_info("x", fed, [None] * rank),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, channels),
        helper.make_tensor_value_info("zero", TensorProto.INT8, channels),
    ]
    node = helper.make_node(operator, ["x", "scale", "zero"], ["y"], axis=0)
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", made, [None] * rank)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def onnxruntime_form(operator: str, x: Any, scale: Any) -> Any:
    factor = np.asarray(scale, np.float32)
    feeds = {"x": x, "scale": factor, "zero": np.zeros(factor.shape, np.int8)}
    return session(operator, x.ndim, per_channel=factor.ndim > 0).run(None, feeds)[0]


def kernel_form(x: Floats, scale: Any, *, relu: bool = False) -> Ints:
    """``x`` [K] through the epilogue of an int8 convolution whose sums are 0."""
    with np.errstate(over="ignore"):
        steps = x / np.broadcast_to(np.asarray(scale, np.float32), x.shape)
    zeros = torch.zeros(1, 4, 1, 1, dtype=torch.int8), torch.zeros(len(x), 4, 1, 1, dtype=torch.int8)
    with tiles(Tile(16, 64, 32)):
        y = conv_int8(*zeros, torch.ones(len(x)), torch.from_numpy(steps), Conv(1, 1), relu=relu)
    return y.flatten().numpy()


def exact(x: float, scale: float) -> int:
    """The formula in rational numbers: Python's ``round`` takes ties to the even neighbour."""
    if np.isinf(x):
        return 127 if x > 0 else -128
    return max(-128, min(127, round(Fraction(x) / Fraction(scale))))


def same_bits(found: Any, expected: Any) -> bool:
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and found.tobytes() == expected.tobytes()
    )


@FUZZ
@given(values())
@example((np.array([0.5, 1.5, 2.5, -0.5, 126.5, 127.5, -127.5, -128.5], np.float32), 1.0))
def test_onnxruntime_quantizes_as_numpy_does(made: tuple[Floats, float]) -> None:
    x, scale = made
    assert same_bits(onnxruntime_form("QuantizeLinear", x, scale), numpy_form(x, scale))


IMPLEMENTATIONS = [
    pytest.param(
        kernels, id="kernel", marks=pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
    ),
    pytest.param(reference, id="reference"),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@SLOW_FUZZ
@given(made=values(), relu=st.booleans())
@example(made=(np.array([0.5, 1.5, 2.5, -0.5, 126.5, 127.5, -127.5, -128.5], np.float32), 1.0), relu=False)
def test_the_kernels_quantize_as_numpy_does(
    implementation: Callable[[], Any], made: tuple[Floats, float], relu: bool
) -> None:
    x, scale = made
    with implementation():
        found = kernel_form(x, scale, relu=relu)
    expected = numpy_form(x, scale)
    assert same_bits(found, np.maximum(expected, 0) if relu else expected)


@FUZZ
@given(values())
def test_the_nearest_step_is_taken_ties_to_even_and_the_ends_saturate(made: tuple[Floats, float]) -> None:
    """``x / scale`` is rounded to float32 first, which may move it onto a tie or off it: then to either neighbour."""
    x, scale = made
    with np.errstate(over="ignore"):
        steps = (x / np.float32(scale)).tolist()
    for value, step, found in zip(x.tolist(), steps, numpy_form(x, scale).tolist(), strict=True):
        wanted = exact(value, scale)
        if np.isinf(step) or Fraction(step) == Fraction(value) / Fraction(scale):
            assert found == wanted
        else:
            assert abs(found - wanted) <= 1


@FUZZ
@given(st.integers(-24, 15), st.integers(-300, 300))
def test_ties_go_to_the_even_neighbour_at_every_power_of_two(exponent: int, steps: int) -> None:
    scale, x = 2.0**exponent, np.array([(steps + 0.5) * 2.0**exponent], np.float32)
    (found,) = numpy_form(x, scale).tolist()
    assert found == exact(float(x[0]), scale)
    assert found % 2 == 0 or found == 127
    assert found == onnxruntime_form("QuantizeLinear", x, scale)[0]


@FUZZ
@given(SCALES)
@example(MIN_SCALE)
@example(MAX_SCALE)
def test_dequantized_integers_are_bit_for_bit_the_same_and_exact(scale: float) -> None:
    found = dequantize(EVERY_INT8, scale)
    assert same_bits(found, onnxruntime_form("DequantizeLinear", EVERY_INT8, scale))
    assert [Fraction(v) for v in found.tolist()] == [int(q) * Fraction(scale) for q in EVERY_INT8]
    assert not np.signbit(found[128]), "zero is +0.0"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@SLOW_FUZZ
@given(scale=SCALES)
@example(scale=MIN_SCALE)
@example(scale=MAX_SCALE)
def test_the_kernels_dequantize_a_residual_as_numpy_does(
    implementation: Callable[[], Any], scale: float
) -> None:
    residual = torch.from_numpy(EVERY_INT8.copy()).reshape(1, 256, 1, 1)
    zeros = torch.zeros(1, 4, 1, 1, dtype=torch.int8), torch.zeros(256, 4, 1, 1, dtype=torch.int8)
    with implementation(), tiles(Tile(16, 64, 32)):
        y = conv_int8(
            *zeros,
            torch.ones(256),
            torch.zeros(256),
            Conv(1, 1),
            relu=True,
            residual=residual,
            residual_scale=scale,
        )
    expected = np.maximum(numpy_form(dequantize(EVERY_INT8, scale), 1.0), 0)
    assert same_bits(y.flatten().numpy(), expected)


@FUZZ
@given(values())
def test_quantizing_what_was_dequantized_changes_nothing(made: tuple[Floats, float]) -> None:
    x, scale = made
    once = numpy_form(x, scale)
    assert same_bits(numpy_form(dequantize(once, scale), scale), once)
    assert same_bits(onnxruntime_form("QuantizeLinear", dequantize(once, scale), scale), once)


@FUZZ
@given(st.lists(st.floats(-65504 * 127, 65504 * 127, width=32), min_size=1, max_size=24))
@example([0.0, -0.0])
@example([DENORMAL, -DENORMAL])
def test_the_scale_of_a_range_is_positive_and_its_grid_symmetric(numbers: list[float]) -> None:
    x = np.array(numbers, np.float32)
    scale = scales_of(np.abs(x).max())
    assert scale.dtype == np.float32
    assert MIN_SCALE <= scale <= MAX_SCALE
    assert scale == np.float32(np.float16(scale)), "an FP16 number"
    q = numpy_form(x, scale)
    assert q.min() >= -127, "-128 is out of reach for what the range holds"
    assert same_bits(numpy_form(-x, scale), -q)
    assert same_bits(onnxruntime_form("QuantizeLinear", -x, scale), -q)


@FUZZ
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 3))
def test_each_channel_has_its_own_scale_along_the_first_axis(seed: int, channels: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    spread = np.exp2(rng.integers(-20, 10, channels)).astype(np.float32)[:, None, None, None]
    weight = (rng.standard_normal((channels, size, 3, 3)).astype(np.float32) * spread).astype(np.float32)
    weight[0, 0, 0, :] = [-0.0, spread[0].item() * 1e9, -np.inf]
    scales = scales_of(np.exp2(rng.integers(-22, 12, channels)) * rng.uniform(0.5, 1, channels) * 127)
    q = numpy_form(weight, scales)
    assert same_bits(q, np.stack([numpy_form(w, s) for w, s in zip(weight, scales, strict=True)]))
    assert same_bits(q, onnxruntime_form("QuantizeLinear", weight, scales))
    assert same_bits(dequantize(q, scales), onnxruntime_form("DequantizeLinear", q, scales))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@SLOW_FUZZ
@given(seed=st.integers(0, 2**32 - 1))
def test_the_kernels_channels_have_their_own_scales_too(implementation: Callable[[], Any], seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.standard_normal(56).astype(np.float32) * 100, np.array(FIXED, np.float32)])
    scales = scales_of(np.exp2(rng.integers(-22, 12, len(x))) * 100)
    with implementation():
        found = kernel_form(x, scales)
    assert same_bits(found, numpy_form(x, scales))


@FUZZ
@given(SCALES, st.integers(-127, 126))
def test_neighbours_of_a_tie_keep_their_order(scale: float, low: int) -> None:
    tie = np.float32((low + 0.5) * scale)
    assert Fraction(float(tie)) == (low + Fraction(1, 2)) * Fraction(scale), "19 bits fit into float32"
    x = np.array([np.nextafter(tie, np.float32(-np.inf)), tie, np.nextafter(tie, np.float32(np.inf))])
    below, at, above = numpy_form(x, scale).tolist()
    assert low <= below <= at <= above <= low + 1
    assert at == exact(float(tie), scale)
    assert same_bits(numpy_form(x, scale), onnxruntime_form("QuantizeLinear", x, scale))
