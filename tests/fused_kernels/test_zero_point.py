"""Convolutions whose input stores its zero as another integer: padding is that zero, bit for bit against NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.launch import recording, uses_kernels
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.zero_point import COMBINATIONS, crossed_borders, has_zero_sums, zero_sums
from fused_kernels.ops.chain import Folded, chain
from fused_kernels.ops.checks import INT32_PRODUCTS
from fused_kernels.ops.inference import conv_int8
from fused_kernels.ops.shortcut import widen
from fused_kernels.tiles import Tile
from tests.fused_kernels import quantized
from tests.fused_kernels.conftest import kernels, reference, reseed, tiles
from tests.fused_kernels.quantized import Layer, assert_same_bits, integers, random_int8, random_layer
from tests.fused_kernels.strategies import FUZZ

BOTH = pytest.mark.parametrize("implementation", [kernels, reference], ids=["kernel", "reference"])
PLANES = [(1, 1), (1, 5), (2, 2), (3, 1), (5, 4), (7, 7)]
SMALL = Tile(16, 16, 32)
ENDINGS = [(True, False), (False, True), (True, True)]
"""Whether there is a ReLU, and a residual."""


def truth(
    x: Tensor, layer: Layer, stride: int, zero_point: int, *, relu: bool, residual: Tensor | None = None
) -> Tensor:
    """q - zero_point convolved with padding of 0: what the sums mean, with no table of borders."""
    values = integers(x) - zero_point
    v = quantized.convolved(values, integers(layer.w), stride, 1).astype(np.float32)
    v = v * quantized.per_channel(layer.scale) + quantized.per_channel(layer.bias)
    if residual is not None:
        v = v + residual.numpy().astype(np.float32) * np.float32(0.37)
    return torch.from_numpy(quantized.to_int8(v, 0 if relu else -128))


def check(plane: tuple[int, int], stride: int, zero_point: int, *, relu: bool, residual: bool) -> None:
    x, layer = random_int8(2, 20, *plane), random_layer(24, 20, 3, 3)
    conv = Conv(3, 3, stride, 1)
    added = random_int8(2, 24, *conv.output_size(*plane)) if residual else None
    scale = None if added is None else 0.37
    sums = zero_sums(layer.w, zero_point)
    with recording() as launches:
        y = conv_int8(x, *layer, conv, relu=relu, residual=added, residual_scale=scale, zero_sums=sums)
    assert_same_bits("y", y, truth(x, layer, stride, zero_point, relu=relu, residual=added))
    assert [launch.arguments["zero_sums_ptr"] is sums for launch in launches] == [True] * uses_kernels(x)


@BOTH
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("plane", PLANES, ids=str)
def test_padding_is_the_zero_point_at_every_border(
    implementation: Any, plane: tuple[int, int], stride: int
) -> None:
    with implementation(), tiles(SMALL):
        check(plane, stride, -128, relu=False, residual=False)


@BOTH
@pytest.mark.parametrize(
    ("zero_point", "relu", "residual"),
    [
        (-128, True, False),
        (-128, False, True),
        (-128, True, True),
        (-1, False, True),
        (0, True, False),
        (127, False, False),
    ],
)
def test_every_zero_point_and_ending(
    implementation: Any, zero_point: int, relu: bool, residual: bool
) -> None:
    with implementation(), tiles(SMALL):
        check((4, 3), 1, zero_point, relu=relu, residual=residual)


@FUZZ
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 3]), st.booleans(), st.integers(0, 2**16))
def test_any_plane_and_tile(h: int, w: int, stride: int, flat: bool, seed: int) -> None:
    reseed(seed)
    with tiles(replace(SMALL, flat=flat)):
        check((h, w), stride, -128, relu=False, residual=False)


@BOTH
@pytest.mark.parametrize("stride", [1, 2])
def test_a_chain_pads_with_its_zero_point(implementation: Any, stride: int) -> None:
    plane, width, expanded = (5, 4), 32, 96
    x, window = random_int8(2, width, *plane), Conv(3, 3, stride, 1)
    layers = [
        random_layer(*shape, spread=100.0) for shape in ((32, 32, 3, 3), (96, 32, 1, 1), (40, 96, 1, 1))
    ]
    folded = [Folded(layer.w, layer.bias, layer.scale, relu=False) for layer in layers]
    folded[0] = replace(folded[0], zero_sums=zero_sums(layers[0].w, -128))
    residual = random_int8(2, expanded, *window.output_size(*plane))
    with implementation(), tiles(Tile(32, 64, 32)):
        z, following = chain(x, folded[0], folded[1], residual, folded[2], stride=stride, residual_scale=0.37)
    h = truth(x, layers[0], stride, -128, relu=False)
    expected = quantized.conv_int8(h, layers[1], (1, 0), relu=False, residual=residual, residual_scale=0.37)
    assert_same_bits("z", z, expected)
    assert following is not None
    assert_same_bits("next", following, quantized.conv_int8(expected, layers[2], (1, 0), relu=False))


@BOTH
def test_a_shortcut_adds_channels_of_the_zero_point(implementation: Any) -> None:
    x = random_int8(2, 20, 7, 5)
    with implementation():
        y = widen(x, stride=2, before=3, after=8, zero_point=-128)
    expected = torch.full((2, 31, 4, 3), -128, dtype=torch.int8)
    expected[:, 3:23] = x[:, :, ::2, ::2]
    assert torch.equal(y, expected)


@pytest.mark.parametrize(("dtype", "zero_point"), [(torch.float32, -128), (torch.int8, 128)])
def test_zero_points_that_int8_does_not_have_are_refused(dtype: torch.dtype, zero_point: int) -> None:
    with pytest.raises(ShapeError, match=f"a zero point of {zero_point}"):
        widen(torch.zeros(1, 1, 2, 2, dtype=dtype), stride=1, before=0, after=0, zero_point=zero_point)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("plane", PLANES, ids=str)
def test_the_table_has_what_each_window_is_missing(plane: tuple[int, int], stride: int) -> None:
    """Against the convolution of a plane that is constantly 1."""
    w, conv = random_int8(5, 3, 3, 3), Conv(3, 3, stride, 1)
    table = zero_sums(w, -2)
    inside = torch.nn.functional.conv2d(
        torch.ones(1, 3, *plane).double(), w.double(), stride=stride, padding=1
    )
    found = table[crossed_borders(conv, *plane)].permute(2, 0, 1)
    assert torch.equal(found, 2 * inside[0].int())
    assert (table.dtype, table.shape) == (torch.int32, (COMBINATIONS, 5))


def operands(**change: Any) -> dict[str, Any]:
    w = torch.zeros(8, 16, 3, 3, dtype=torch.int8)
    good = {
        "x": torch.zeros(1, 16, 4, 4, dtype=torch.int8),
        **Layer(w, torch.ones(8), torch.zeros(8))._asdict(),
        "conv": Conv(3, 3, padding=1),
        "relu": True,
        "zero_sums": zero_sums(w, -128),
    }
    return good | change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv": Conv(3, 3)}, "3x3 convolution with padding 1, not to 3x3 with 0"),
        ({"zero_sums": torch.zeros(16, 7, dtype=torch.int32)}, r"zero_sums is torch.int32 \(16, 7\)"),
        ({"zero_sums": torch.zeros(16, 8)}, "zero_sums is torch.float32"),
        ({"zero_sums": torch.zeros(8, 16, dtype=torch.int32).T}, r"with strides \(1, 16\)"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        conv_int8(**operands(**change))


def test_sums_of_values_up_to_255_need_twice_the_room() -> None:
    channels = INT32_PRODUCTS // 2 // 9 + 1
    x, w = (torch.zeros(shape, dtype=torch.int8) for shape in ((1, channels, 1, 1), (8, channels, 3, 3)))
    with pytest.raises(Unsupported, match="at most 65535"):
        conv_int8(**operands(x=x, w=w))


def test_the_largest_sum_is_exact() -> None:
    """255 * 127 * 9 * 7281 is 99 % of 2**31."""
    x = torch.full((1, 7281, 3, 3), 127, dtype=torch.int8)
    w = torch.full((1, 7281, 3, 3), 127, dtype=torch.int8)
    with reference():
        y = conv_int8(
            x,
            w,
            torch.tensor([2.0**-24]),
            torch.zeros(1),
            Conv(3, 3, padding=1),
            relu=False,
            zero_sums=zero_sums(w, -128),
        )
    assert y[0, 0, 1, 1].item() == round(255 * 127 * 9 * 7281 / 2**24)


def test_windows_that_take_a_table() -> None:
    assert [
        has_zero_sums(conv)
        for conv in (Conv(3, 3, 1, 1), Conv(3, 3, 2, 1), Conv(3, 3), Conv(1, 1), Conv(7, 7, 2, 3))
    ] == [True, True, False, False, False]
    with pytest.raises(ShapeError, match="a 3x3 convolution"):
        zero_sums(torch.zeros(4, 4, 1, 1, dtype=torch.int8), -128)


@pytest.mark.parametrize("position", [1, 2])
def test_the_1x1s_of_a_chain_take_no_table(position: int) -> None:
    shapes = ((32, 32, 3, 3), (96, 32, 1, 1), (40, 96, 1, 1))
    folded = [Folded(*(random_layer(*shape)[index] for index in (0, 2, 1))) for shape in shapes]
    sums = torch.zeros(COMBINATIONS, shapes[position][0], dtype=torch.int32)
    folded[position] = replace(folded[position], zero_sums=sums)
    x, residual = random_int8(1, 32, 4, 4), random_int8(1, 96, 4, 4)
    with pytest.raises(ShapeError, match=r"conv\d.zero_sums belongs to a 3x3 convolution .* not to 1x1"):
        chain(x, folded[0], folded[1], residual, folded[2], residual_scale=0.5)


def test_a_chain_of_floats_takes_no_table() -> None:
    w = torch.zeros(32, 32, 3, 3, dtype=torch.float16)
    sums = torch.zeros(COMBINATIONS, 32, dtype=torch.int32)
    conv2 = Folded(w, torch.zeros(32), zero_sums=sums)
    conv3 = Folded(torch.zeros(96, 32, 1, 1, dtype=torch.float16), torch.zeros(96))
    x, residual = torch.zeros(1, 32, 4, 4).half(), torch.zeros(1, 96, 4, 4).half()
    with pytest.raises(
        Unsupported, match=r"conv2.zero_sums belongs to int8 activations, not to torch.float16"
    ):
        chain(x, conv2, conv3, residual)
