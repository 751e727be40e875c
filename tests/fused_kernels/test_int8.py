"""The quantized convolution, bit for bit against integer arithmetic in NumPy (``quantized``)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fused_kernels.choice import REFERENCE, choosing
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.launch import recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops.checks import INT32_PRODUCTS
from fused_kernels.ops.inference import conv_int8, float32, requantization
from fused_kernels.tiles import Tile
from tests.fused_kernels import quantized
from tests.fused_kernels.checks import Case
from tests.fused_kernels.conftest import kernels, normal, reference, reseed, tiles
from tests.fused_kernels.quantized import Layer, assert_same_bits, random_int8, random_layer
from tests.fused_kernels.strategies import FUZZ, tiled_cases

EPILOGUES = ["requantize", "requantize_relu", "requantize_residual", "requantize_residual_relu"]
POINTWISE = Conv(1, 1)
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", [kernels, reference], ids=["kernel", "reference"])


def check_conv_int8(case: Case, epilogue: str) -> None:
    x, layer = random_int8(case.n, case.c, case.h, case.w), random_layer(case.k, case.c, case.r, case.s)
    arguments: dict[str, Any] = {"relu": epilogue.endswith("relu")}
    if "residual" in epilogue:
        p, q = case.conv.output_size(case.h, case.w)
        arguments |= {"residual": random_int8(case.n, case.k, p, q), "residual_scale": 0.37}
    with recording() as launches:
        y = conv_int8(x, layer.w, layer.scale, layer.bias, case.conv, **arguments)
    truth = quantized.conv_int8(x, layer, (case.stride, case.padding), **arguments)
    assert_same_bits("y", y, truth)
    assert y.is_contiguous(memory_format=torch.channels_last)
    chosen = [launch.arguments["EPILOGUE"].name for launch in launches]
    assert chosen in ([], [f"epilogues.{epilogue}"]), "one launch, with the epilogue that was asked for"


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_each_epilogue(epilogue: str, stride: int, small_tiles: Tile) -> None:
    check_conv_int8(Case(stride=stride, k=40), epilogue)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_each_reference(epilogue: str, stride: int) -> None:
    with reference():
        check_conv_int8(Case(stride=stride), epilogue)


@FUZZ
@given(tiled_cases("fprop"), st.sampled_from(EPILOGUES), st.integers(0, 2**16))
def test_any_geometry_and_tile(made: tuple[Case, Tile], epilogue: str, seed: int) -> None:
    reseed(seed)
    with tiles(replace(made[1], k=max(32, made[1].k))):
        check_conv_int8(made[0], epilogue)


@pytest.mark.parametrize("size", [31, 32, 33, 65])
def test_sizes_around_a_tile(size: int, small_tiles: Tile) -> None:
    check_conv_int8(Case(1, 1, padding=0, n=1, c=size, k=size, h=1, w=size), "requantize_residual_relu")


def test_a_table_may_send_a_shape_to_the_reference() -> None:
    with choosing(lambda _: REFERENCE), recording() as launches:
        check_conv_int8(Case(), "requantize_relu")
    assert not launches


def test_operands_in_nchw_memory_are_taken_too(small_tiles: Tile) -> None:
    x, layer, residual = random_int8(2, 20, 5, 4), random_layer(24, 20, 3, 3), random_int8(2, 24, 5, 4)
    arguments: dict[str, Any] = {"relu": True, "residual": residual.contiguous(), "residual_scale": 0.5}
    y = conv_int8(
        x.contiguous(), layer.w.contiguous(), layer.scale, layer.bias, Conv(3, 3, 1, 1), **arguments
    )
    assert_same_bits("y", y, quantized.conv_int8(x, layer, (1, 1), **arguments))


def every_int8() -> Tensor:
    """[1, 1, 1, 256]: -128 to 127."""
    return torch.arange(-128, 128).to(torch.int8).reshape(1, 1, 1, 256)


def scaled(x: Tensor, factor: int, scale: float, bias: float, **arguments: Any) -> list[int]:
    """Results of a 1x1 convolution of one channel by ``factor``."""
    w = torch.tensor([[[[factor]]]], dtype=torch.int8)
    y = conv_int8(x, w, torch.tensor([scale]), torch.tensor([bias]), POINTWISE, **arguments)
    return y.flatten().tolist()


@IMPLEMENTATIONS
def test_ties_go_to_the_even_neighbour(implementation: Any) -> None:
    with implementation():
        halves = scaled(every_int8(), 1, 0.5, 0.0, relu=False)
        moved = scaled(every_int8(), 1, 1.0, 0.5, relu=False)
    # Python's own round takes ties to even; -127.5 and -0.5, 0.5 and 1.5, 2.5 and 126.5 are all among them
    assert halves == [round(v / 2) for v in range(-128, 128)]
    assert moved == [min(127, round(v + 0.5)) for v in range(-128, 128)]


@IMPLEMENTATIONS
@pytest.mark.parametrize("relu", [False, True])
def test_numbers_of_every_size_round_and_saturate(implementation: Any, relu: bool) -> None:
    """Sums of 0, so that the bias is what becomes int8: around ties, the ends of int8 and the digits of fp32."""
    sizes = [0.0, 0.4999999, 0.5, 1.5, 126.5, 127.4999, 127.5, 128.5, 255.5, 256.5, 65535.5, 2.0**31, 3e38]
    sizes += [
        factor * 2.0**exponent + off for exponent in (22, 23) for factor in (1, 1.5) for off in (-0.5, 0, 1)
    ]
    v = np.array([sign * size for size in [*sizes, np.inf] for sign in (1, -1)], dtype=np.float32)
    x, w = torch.zeros(1, 4, 1, 1, dtype=torch.int8), torch.zeros(len(v), 4, 1, 1, dtype=torch.int8)
    with implementation(), tiles(Tile(16, 64, 32)):
        y = conv_int8(x, w, torch.ones(len(v)), torch.from_numpy(v), POINTWISE, relu=relu)
    assert y.flatten().tolist() == np.clip(np.rint(v), 0 if relu else -128, 127).tolist()


@IMPLEMENTATIONS
@pytest.mark.parametrize("relu", [False, True])
def test_results_saturate_at_both_ends(implementation: Any, relu: bool) -> None:
    low = 0 if relu else -128
    with implementation():
        products = scaled(every_int8(), 127, 1.0, 0.0, relu=relu)
        huge = scaled(every_int8(), 127, 1e30, 0.0, relu=relu)
        edges = scaled(every_int8(), 1, 1.0, 0.25, relu=relu)
    assert products == [max(low, min(127, 127 * v)) for v in range(-128, 128)]
    assert huge == [low] * 128 + [0] + [127] * 127
    assert edges == [max(low, v) for v in range(-128, 128)]


@IMPLEMENTATIONS
@pytest.mark.parametrize("relu", [False, True])
def test_a_residual_alone_saturates_and_rounds_like_everything_else(implementation: Any, relu: bool) -> None:
    with implementation():
        y = scaled(every_int8() * 0, 1, 1.0, 0.0, relu=relu, residual=every_int8(), residual_scale=1.5)
    assert y == [max(0 if relu else -128, min(127, round(1.5 * v))) for v in range(-128, 128)]


@IMPLEMENTATIONS
def test_zero_stored_as_the_lowest_integer_is_a_relu_of_the_full_range(implementation: Any) -> None:
    """Bias and residual carry 128 steps, as ``graph.full_range`` folds them; q + 128 is the ReLU's result in steps."""
    x, step = every_int8(), 0.25
    with implementation():
        made = scaled(x, 3, step, -128.0, relu=False)
        stored = torch.tensor(made).to(torch.int8).reshape(x.shape)
        # 128 steps of the residual are taken in by the bias: 0.5 * 128 - 128
        added = scaled(x, 3, step, -64.0, relu=False, residual=stored, residual_scale=0.5)
    steps = [min(255, max(0, round(3 * step * v))) for v in range(-128, 128)]
    assert [v + 128 for v in made] == steps
    assert [v + 128 for v in added] == [
        min(255, max(0, round(3 * step * v + 0.5 * residual)))
        for v, residual in zip(range(-128, 128), steps, strict=True)
    ]


@IMPLEMENTATIONS
def test_sums_beyond_the_digits_of_fp32_are_exact_until_they_are_scaled(implementation: Any) -> None:
    """Sums are 2**24 + d; fp32 holds every second of those, so they round to even multiples of 2 once."""
    d = torch.arange(64)
    x, w = torch.full((1, 1043, 1, 1), 127), torch.full((64, 1043, 1, 1), 127)
    x[0, 1041:, 0, 0], w[:, 1040:, 0, 0] = torch.tensor([8, 1]), torch.tensor([24, 1, 0])
    w[:, 1042, 0, 0] = d
    assert torch.equal((x * w).sum(dim=(1, 2, 3)), 2**24 + d)
    with implementation():
        one, minus = torch.ones(64), torch.full((64,), -(2.0**24))
        y = conv_int8(x.to(torch.int8), w.to(torch.int8), one, minus, POINTWISE, relu=False)
    assert y.flatten().tolist() == [2 * round(v / 2) for v in range(64)]


@IMPLEMENTATIONS
def test_sums_that_pass_the_digits_of_fp32_on_their_way_are_exact(implementation: Any) -> None:
    """The sums climb to d + 18,580,608 and return to d; in fp32, odd values of d would come back even."""
    d = torch.arange(64)
    w = torch.full((64, 2305, 1, 1), 127)
    w[:, 1153:] = -127
    w[:, 0, 0, 0] = d
    x = torch.full((1, 2305, 1, 1), 127)
    x[0, 0] = 1
    with implementation():
        y = conv_int8(
            x.to(torch.int8), w.to(torch.int8), torch.ones(64), torch.zeros(64), POINTWISE, relu=False
        )
    assert torch.equal(y.flatten(), d.to(torch.int8))


@IMPLEMENTATIONS
def test_the_largest_sum_that_is_taken_is_computed_exactly(implementation: Any) -> None:
    x = torch.full((1, INT32_PRODUCTS - 1, 1, 1), -128, dtype=torch.int8)
    with implementation(), tiles(Tile(16, 16, 2**15)):
        y = conv_int8(x, x, torch.tensor([2.0**-26]), torch.zeros(1), POINTWISE, relu=False)
    assert y.item() == 32  # (2**31 - 2**14) / 2**26; one product more would wrap round to -32


def test_vectors_of_requantization_are_the_real_arithmetic_rounded_once() -> None:
    s_x, s_out, s_residual = 0.0173, 0.0311, 0.0229
    s_w, bias = torch.rand(40) * 0.01 + 1e-4, normal(40)
    made = requantization(s_x, s_w, s_out, bias, s_residual)
    exact = s_w.numpy().astype(np.longdouble) * np.longdouble(s_x) / np.longdouble(s_out)
    assert np.abs(made.scale.numpy() / exact - 1).max() <= 2.0**-24 * (1 + 1e-6)
    assert torch.equal(made.bias, (bias.double() / s_out).float())
    assert made.residual_scale == float(np.float32(s_residual / s_out)) != s_residual / s_out
    assert made.scale.dtype == made.bias.dtype == torch.float32
    assert requantization(s_x, s_w, s_out, bias).residual_scale is None


def test_a_quantized_convolution_is_the_real_one_to_half_a_step() -> None:
    """Dequantized operands convolved in float64 lie within half a step of the result, wherever it did not saturate."""
    x, w, residual = random_int8(2, 20, 5, 5), random_int8(24, 20, 3, 3), random_int8(2, 24, 5, 5)
    s_x, s_w, s_out, s_residual, bias = 0.02, torch.rand(24) * 0.01 + 1e-3, 0.5, 0.3, normal(24)
    vectors = requantization(s_x, s_w, s_out, bias, s_residual)
    y = conv_int8(
        x,
        w,
        vectors.scale,
        vectors.bias,
        Conv(3, 3, 1, 1),
        relu=True,
        residual=residual,
        residual_scale=vectors.residual_scale,
    )
    real = torch.nn.functional.conv2d(
        x.double() * s_x, w.double() * s_w.double()[:, None, None, None], bias.double(), padding=1
    )
    real = (real + residual.double() * s_residual).relu()
    inside = real < 127 * s_out
    assert inside.double().mean() > 0.5
    assert ((y.double() * s_out - real).abs()[inside] <= s_out * 0.50001).all()


@pytest.mark.parametrize("scale", [0.0, -0.1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["s_x", "s_w", "s_out", "s_residual"])
def test_scales_that_quantize_nothing_are_refused_by_name(name: str, scale: float) -> None:
    scales: dict[str, Any] = {"s_x": 0.1, "s_w": torch.ones(2), "s_out": 0.1, "s_residual": 0.1}
    scales[name] = torch.tensor([0.1, scale]) if name == "s_w" else scale
    with pytest.raises(Unsupported, match=f"{name} holds .*, but a quantization scale is a positive"):
        requantization(**scales, bias=torch.zeros(2))


def test_fp32_of_a_number_is_the_nearest() -> None:
    assert [float32(v) for v in (0.1, 1.0, 1 + 2.0**-25)] == [float(np.float32(0.1)), 1.0, 1.0]


def operands(**change: Any) -> dict[str, Any]:
    layer = Layer(torch.zeros(8, 16, 1, 1, dtype=torch.int8), torch.ones(8), torch.zeros(8))
    good = {
        "x": torch.zeros(1, 16, 4, 4, dtype=torch.int8),
        **layer._asdict(),
        "conv": POINTWISE,
        "relu": True,
    }
    return good | change


RESIDUAL = torch.zeros(1, 8, 4, 4, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(0, 16, 4, 4, dtype=torch.int8)}, r"x is \(0, 16, 4, 4\): .* at least one element"),
        ({"w": torch.zeros(0, 16, 1, 1, dtype=torch.int8)}, "do not fit"),
        ({"w": torch.zeros(8, 16, 1, 1)}, "x is torch.int8 and w is torch.float32"),
        ({"scale": torch.ones(7)}, r"scale is torch.float32 \(7,\)"),
        ({"bias": torch.zeros(8, dtype=torch.int32)}, "bias is torch.int32"),
        ({"residual": RESIDUAL}, "residual is given without residual_scale"),
        ({"residual_scale": 1.0}, "residual_scale is given without residual"),
        ({"residual": RESIDUAL.float(), "residual_scale": 1.0}, "the residual is torch.float32"),
        ({"residual": RESIDUAL[:, :, :3], "residual_scale": 1.0}, r"gives torch.int8 \(1, 8, 4, 4\)"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        conv_int8(**operands(**change))


def test_floats_are_refused() -> None:
    with pytest.raises(Unsupported, match="conv_int8 takes int8, not float32"):
        conv_int8(**operands(x=torch.zeros(1, 16, 4, 4)))


def test_sums_that_int32_may_not_hold_are_refused() -> None:
    x = torch.zeros(1, INT32_PRODUCTS, 1, 1, dtype=torch.int8)
    with pytest.raises(
        Unsupported, match="adds up 131072 products, which int32 may not hold: at most 131071"
    ):
        conv_int8(**operands(x=x, w=x.expand(8, -1, 1, 1)))
