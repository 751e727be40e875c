"""Global average pool + fully connected: floats against float64, int8 bit for bit against NumPy."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from fused_kernels.choice import REFERENCE, choosing
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.launch import recording
from fused_kernels.ops import convolution
from fused_kernels.ops.head import head_scales, pool_fc, pool_fc_int8
from fused_kernels.tiles import Tile
from tests.fused_kernels import quantized
from tests.fused_kernels.conftest import activation, kernels, normal, reference, reseed, tiles
from tests.fused_kernels.ground_truth import stored
from tests.fused_kernels.launches import bytes_read, bytes_written
from tests.fused_kernels.quantized import Layer, assert_same_bits, random_int8
from tests.fused_kernels.strategies import FUZZ
from tests.fused_kernels.tolerances import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SMALL = Tile(16, 32, 32)
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", [kernels, reference], ids=["kernel", "reference"])
Shape = tuple[int, int, int, int, int]
"""n, c, h, w, classes."""
SHAPE: Shape = (19, 70, 3, 5, 45)


def pooled_and_multiplied(x: Tensor, w: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """float64, or what eager PyTorch stores in ``dtype``."""
    return stored(F.linear(stored(x.double().mean(dim=(2, 3)), dtype), w.double(), b.double()), dtype)


def check_pool_fc(shape: Shape, dtype: torch.dtype, tile: Tile | None = SMALL) -> None:
    n, c, h, width, classes = shape
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    x = activation(n, c, h, width, dtype, mean=0.5)
    w, b = (normal(classes, c) / c**0.5).to(dtype), normal(classes).to(wide)
    with nullcontext() if tile is None else tiles(tile):
        logits = pool_fc(x, w, b)
    truth, torchs = (pooled_and_multiplied(x, w, b, d) for d in (torch.float64, dtype))
    assert logits.dtype == wide
    assert_close("logits", logits, truth, torchs=torchs, dtype=dtype)


def check_pool_fc_int8(shape: Shape, tile: Tile | None = SMALL) -> None:
    n, c, h, width, classes = shape
    x, w = random_int8(n, c, h, width), random_int8(classes, c)
    layer, pool_scale = Layer(w, torch.rand(classes) + 0.5, normal(classes) * 10), 1.7 / (h * width)
    with nullcontext() if tile is None else tiles(tile):
        logits = pool_fc_int8(x, pool_scale, w, layer.scale, layer.bias)
    assert_same_bits("logits", logits, quantized.pool_fc_int8(x, pool_scale, layer))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype) -> None:
    check_pool_fc(SHAPE, dtype)


def test_int8() -> None:
    check_pool_fc_int8(SHAPE)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8, *DTYPES], ids=str)
def test_references_of_every_dtype(dtype: torch.dtype) -> None:
    with reference():
        check_pool_fc_int8(SHAPE) if dtype == torch.int8 else check_pool_fc(SHAPE, dtype)


SHAPES = st.tuples(*(st.integers(1, largest) for largest in (20, 70, 7, 7, 45)))
TILES = st.builds(Tile, m=st.sampled_from([16, 32]), n=st.sampled_from([16, 64]), k=st.sampled_from([32, 64]))


@FUZZ
@given(SHAPES, TILES, st.sampled_from([*DTYPES, torch.int8]), st.integers(0, 2**16))
def test_any_shape_and_tile(shape: Shape, tile: Tile, dtype: torch.dtype, seed: int) -> None:
    reseed(seed)
    if dtype == torch.int8:
        check_pool_fc_int8(shape, tile)
        return
    # a few logits may cancel to nothing, and relative errors with them
    numbers = shape[0] * shape[-1]
    assume(numbers >= 16)
    check_pool_fc(shape, dtype if numbers >= 64 else torch.float32, tile)


@pytest.mark.parametrize(("n", "c", "classes"), [(16, 32, 32), (17, 33, 33), (15, 31, 31), (1, 1, 1)])
def test_sizes_around_a_tile(n: int, c: int, classes: int) -> None:
    check_pool_fc_int8((n, c, 2, 2, classes))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int8], ids=str)
@pytest.mark.parametrize("pixels", [1, 8, 9, 49])
def test_default_tiles_with_any_count_of_pixels(dtype: torch.dtype, pixels: int) -> None:
    shape = (1, 16, 1, pixels, 10)
    check_pool_fc_int8(shape, None) if dtype == torch.int8 else check_pool_fc(shape, dtype, None)


def test_operands_in_other_memory_are_taken_too() -> None:
    x, w, b = normal(2, 20, 3, 4), normal(20, 10).T, normal(10)
    assert not x.is_contiguous(memory_format=torch.channels_last)
    with tiles(SMALL):
        logits = pool_fc(x, w, b)
    assert_close("logits", logits, F.linear(x.double().mean(dim=(2, 3)), w.double(), b.double()))


@IMPLEMENTATIONS
def test_means_round_ties_to_even_and_saturate(implementation: Any) -> None:
    """One pixel, one channel for each int8; the weight picks a channel for each class."""
    x = torch.arange(-128, 128).to(torch.int8).reshape(1, 256, 1, 1)
    w, one, zero = torch.eye(256).to(torch.int8), torch.ones(256), torch.zeros(256)
    with implementation(), tiles(Tile(16, 256, 256)):
        halves = pool_fc_int8(x, 0.5, w, one, zero)
        doubled = pool_fc_int8(x, 2.0, w, one, zero)
    assert halves[0].tolist() == [round(v / 2) for v in range(-128, 128)]
    assert doubled[0].tolist() == [max(-128, min(127, 2 * v)) for v in range(-128, 128)]


@IMPLEMENTATIONS
def test_sums_over_pixels_are_exact_beyond_the_range_of_int8_and_int16(implementation: Any) -> None:
    x, one, zero = torch.full((1, 16, 20, 20), -128, dtype=torch.int8), torch.ones(1), torch.zeros(1)
    x[0, 1] = 127
    w = torch.zeros(1, 16, dtype=torch.int8)
    w[0, :2] = torch.tensor([1, 3])
    with implementation():
        logits = pool_fc_int8(x, 1 / 400, w, one, zero)
    assert logits.item() == -128 + 3 * 127


def test_scales_are_the_real_arithmetic_rounded_once() -> None:
    s_w = torch.rand(10) + 0.1
    pool_scale, scale = head_scales(0.0173, 49, 0.0311, s_w)
    assert pool_scale == float(np.float32(0.0173 / (49 * 0.0311)))
    assert torch.equal(scale, (s_w.double() * 0.0311).float())
    with pytest.raises(Unsupported, match="s_pool holds -1"):
        head_scales(0.1, 49, -1.0, s_w)


def test_quantized_logits_are_the_real_ones_to_half_a_step_of_the_mean() -> None:
    x, w, b = random_int8(2, 24, 3, 3, low=0), random_int8(10, 24), normal(10)
    s_x, s_pool, s_w = 0.02, 0.011, torch.rand(10) * 0.01 + 1e-3
    pool_scale, scale = head_scales(s_x, 9, s_pool, s_w)
    logits = pool_fc_int8(x, pool_scale, w, scale, b)
    mean = (x.double() * s_x).mean(dim=(2, 3))
    assert mean.max() < 127 * s_pool * 1.5
    real = F.linear(mean.clamp(max=127 * s_pool), w.double() * s_w.double()[:, None], b.double())
    allowed = s_pool / 2 * (w.double().abs() * s_w.double()[:, None]).sum(dim=1) * 1.0001
    assert ((logits.double() - real).abs() <= allowed).all()


def test_the_activation_is_read_once_and_little_else_is_moved() -> None:
    with torch.device("meta"), recording() as launches:
        x, w, b = torch.empty(4, 64, 7, 7).half(), torch.empty(10, 64).half(), torch.empty(10)
        logits = pool_fc(x, w, b)
    pool, product = launches
    pooled = 2 * 4 * 64
    assert (bytes_read(pool), bytes_written(pool)) == (2 * x.numel(), pooled)
    assert bytes_read(product) == pooled + 2 * w.numel() + 4 * 10
    assert bytes_written(product) == 4 * logits.numel() == 4 * 40


def test_the_classifier_of_fp32_does_not_take_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "precision", lambda dtype: "tf32")
    with torch.device("meta"), recording() as launches:
        pool_fc(torch.empty(4, 64, 7, 7), torch.empty(10, 64), torch.empty(10))
    assert launches[1].arguments["PRECISION"] == "ieee"


def test_a_table_may_send_the_head_to_torch() -> None:
    x, w, b = activation(3, 20, 2, 3), normal(10, 20), normal(10)
    with choosing(lambda _: REFERENCE), recording() as launches:
        logits = pool_fc(x, w, b)
    with reference():
        assert torch.equal(logits, pool_fc(x, w, b))
    assert not launches


def test_an_empty_batch_gives_no_logits() -> None:
    assert pool_fc(torch.empty(0, 8, 2, 2), normal(10, 8), normal(10)).shape == (0, 10)


INT8 = torch.zeros(1, 8, 2, 2, dtype=torch.int8)


@pytest.mark.parametrize(
    ("x", "w", "b", "message"),
    [
        (torch.zeros(1, 8), torch.zeros(10, 8), torch.zeros(10), r"x \(1, 8\) and w \(10, 8\) do not fit"),
        (torch.zeros(1, 8, 2, 2), torch.zeros(10, 7), torch.zeros(10), "do not fit"),
        (torch.zeros(1, 8, 0, 2), torch.zeros(10, 8), torch.zeros(10), "none empty"),
        (torch.zeros(1, 8, 2, 2), torch.zeros(10, 8).half(), torch.zeros(10), "w is torch.float16"),
        (torch.zeros(1, 8, 2, 2), torch.zeros(10, 8), torch.zeros(10).half(), "b is torch.float16"),
    ],
)
def test_operands_that_do_not_fit_are_refused(x: Tensor, w: Tensor, b: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        pool_fc(x, w, b)


def test_int8_operands_that_do_not_fit_are_refused() -> None:
    w, one, zero = INT8[0, :, 0, 0].expand(10, 8), torch.ones(10), torch.zeros(10)
    with pytest.raises(ShapeError, match="at least one element"):
        pool_fc_int8(INT8[:0], 1.0, w, one, zero)
    with pytest.raises(ShapeError, match=r"scale is torch.float32 \(9,\)"):
        pool_fc_int8(INT8, 1.0, w, one[:9], zero)
    with pytest.raises(ShapeError, match=r"b is torch.float32 \(9,\)"):
        pool_fc_int8(INT8, 1.0, w, one, zero[:9])


def test_dtypes_go_with_their_functions() -> None:
    with pytest.raises(Unsupported, match="pool_fc takes float32, float16 or bfloat16, not int8"):
        pool_fc(INT8, INT8[0, :, 0], torch.zeros(8))
    with pytest.raises(Unsupported, match="pool_fc_int8 takes int8, not float32"):
        pool_fc_int8(INT8.float(), 1.0, torch.zeros(10, 8), torch.ones(10), torch.zeros(10))
