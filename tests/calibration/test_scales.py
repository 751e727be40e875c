from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.scales import (
    MIN_SCALE,
    channel_scales,
    dequantize,
    quantize,
    scale_of,
    scales_of,
    weight_scales,
)


def squared_error(weight: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float64]:
    back = dequantize(quantize(weight, scales), scales)
    return ((weight - back).astype(np.float64) ** 2).reshape(len(weight), -1).sum(axis=1)


@given(st.floats(2.0**-24 * 127, 65504.0 * 127))
@settings(max_examples=200, deadline=None)
def test_scale_is_the_next_fp16_number_at_or_above_amax_over_127(amax: float) -> None:
    scale = scale_of(amax)
    below = np.nextafter(np.float16(scale), np.float16(0))
    assert float(np.float16(scale)) == scale
    assert float(below) < amax / 127 <= scale


def test_largest_range_keeps_the_largest_fp16_scale() -> None:
    assert scale_of(65504.0 * 127) == 65504.0


def test_scale_that_is_an_fp16_number_is_kept() -> None:
    assert scale_of(127 * 0.0625) == 0.0625


@pytest.mark.parametrize("amax", [0.0, 1e-300, 127 * 2.0**-25])
def test_dead_and_tiny_ranges_get_the_smallest_positive_fp16_scale(amax: float) -> None:
    assert scale_of(amax) == MIN_SCALE == float(np.float16(MIN_SCALE)) > 0


@pytest.mark.parametrize("amax", [65504.0 * 127 * 1.001, np.inf, np.nan, -1.0])
def test_range_without_fp16_scale_is_refused(amax: float) -> None:
    with pytest.raises(CalibrationError, match="no 8-bit scale that FP16 can hold"):
        scales_of([1.0, amax])


def test_half_steps_round_to_even_and_the_ends_saturate() -> None:
    steps = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, 127, 127.5, 1e30, -127, -127.5, -128.5, -1e30])
    expected = [0, 2, 2, 0, -2, -2, 126, 127, 127, 127, -127, -128, -128, -128]
    assert quantize(steps * 0.25, 0.25).tolist() == expected


@given(st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_error_within_the_range_is_at_most_half_a_step(values: list[float]) -> None:
    array = np.array(values, np.float32)
    scale = scale_of(float(np.abs(array).max()))
    assert quantize(array, scale).min() >= -127
    assert np.abs(dequantize(quantize(array, scale), scale) - array).max() <= scale * 0.50001


def test_scales_of_channels_apply_along_the_first_axis() -> None:
    weight = np.ones((2, 2, 1, 1), np.float32)
    scales = np.array([0.5, 0.25], np.float32)
    assert quantize(weight, scales).reshape(2, 2).tolist() == [[2, 2], [4, 4]]
    assert dequantize(quantize(weight, scales), scales).tolist() == weight.tolist()
    assert quantize(weight, scales.reshape(2, 1, 1, 1)).reshape(2, 2).tolist() == [[2, 2], [4, 4]]


def test_nan_is_not_quantized() -> None:
    with pytest.raises(CalibrationError, match="NaN cannot be quantized"):
        quantize([np.nan], 1.0)


def test_max_scales_hold_every_channel_and_a_dead_one() -> None:
    weight = np.array([[1.0, -254.0], [127.0, 3.0], [0.0, 0.0]], np.float32)
    assert weight_scales(weight).tolist() == [2.0, 1.0, MIN_SCALE]


@pytest.mark.parametrize("shape", [(7, 16, 3, 3), (300, 512), (3, 70_000)])
def test_mse_scales_are_as_good_as_a_dense_search(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(1).standard_t(4, size=shape).astype(np.float32)
    found = squared_error(weight, weight_scales(weight, "mse"))
    amax = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    dense = np.min([squared_error(weight, scales_of(amax * f)) for f in np.linspace(0.45, 1.06, 150)], axis=0)
    assert found.sum() <= 1.04 * dense.sum()
    assert np.all(found <= squared_error(weight, weight_scales(weight)))


def test_seven_bits_are_coarser_and_hold_every_channel() -> None:
    weight = np.random.default_rng(3).standard_t(4, size=(20, 500)).astype(np.float32)
    scales = channel_scales(weight, 63)
    assert np.all(scales > 1.5 * channel_scales(weight))
    assert np.abs(quantize(weight, scales)).max() == 63


def test_mse_clips_a_lonely_outlier_where_max_does_not() -> None:
    weight = np.random.default_rng(0).normal(size=(2, 60_000)).astype(np.float32)
    weight[0, 0] = 8.0
    clipped, kept = weight_scales(weight, "mse") / weight_scales(weight)
    assert clipped < 0.8
    assert kept > 0.9


@pytest.mark.parametrize("method", ["max", "mse"])
def test_channels_do_not_influence_each_other(method: str) -> None:
    weight = np.random.default_rng(2).normal(size=(6, 4, 3, 3)).astype(np.float32)
    weight *= np.array([1e-3, 1, 1e3, 0, 1e-6, 7], np.float32)[:, None, None, None]
    alone = [weight_scales(channel[None], method)[0] for channel in weight]  # type: ignore[arg-type]
    assert weight_scales(weight, method).tolist() == alone  # type: ignore[arg-type]
    assert weight_scales(weight, method).dtype == np.float32  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_weights_are_refused_by_channel(bad: float) -> None:
    weight = np.ones((3, 2), np.float32)
    weight[1, 1] = bad
    with pytest.raises(CalibrationError, match=r"output channel 1 .* holds NaN or infinity"):
        weight_scales(weight, "mse")
