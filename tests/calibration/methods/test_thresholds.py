from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibration.errors import CalibrationError
from calibration.methods.thresholds import (
    METHODS,
    _divergences,
    amax_entropy,
    amax_max,
    amax_mse,
    amax_percentile,
    parse_method,
)
from calibration.statistics.observers import Histogram
from tests.calibration.statistics.histograms import histogram_of

rng = np.random.default_rng(0)
SHAPES = {
    "gaussian": rng.normal(size=60_000),
    "relu": np.maximum(rng.normal(size=60_000), 0),
    "laplace": rng.laplace(size=60_000),
    "uniform": rng.uniform(-1, 1, size=60_000),
}


def squared_error(values: np.ndarray, threshold: float) -> float:
    step = threshold / 127
    return float(np.mean((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2))


def divergence(histogram: Histogram, bins: int) -> float:
    """D(P || Q) for one threshold, element by element."""
    counts = histogram.counts.astype(float)
    counts[0] = counts[1]
    p = counts[:bins].copy()
    p[-1] += counts[bins:].sum()
    q = np.zeros(bins)
    for group in range(128):
        part = slice(bins * group // 128, bins * (group + 1) // 128)
        occupied = p[part] > 0
        if occupied.any():
            q[part][occupied] = counts[:bins][part].sum() / occupied.sum()
    p, q = p / p.sum(), q / q.sum()
    if np.any((p > 0) & (q == 0)):
        return np.inf
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


def test_max_is_amax() -> None:
    assert amax_max(histogram_of([-5.0, 3.0])) == 5.0


def test_percentile_is_the_upper_edge_of_the_bin_that_reaches_it() -> None:
    values = np.concatenate((np.full(99, 1.0), [2.0])).astype(np.float32)
    histogram = histogram_of(values)
    assert amax_percentile(histogram, 99.0) == 1.0 + histogram.bin_width
    assert amax_percentile(histogram, 99.1) == 2.0
    assert amax_percentile(histogram, 100.0) == 2.0


def test_percentile_counts_zeros() -> None:
    assert amax_percentile(histogram_of([0.0] * 99 + [8.0]), 50.0) == 8.0 / 2048


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_is_as_good_as_a_dense_search_on_the_values_themselves(shape: str) -> None:
    values = SHAPES[shape].astype(np.float32)
    histogram = histogram_of(values)
    best = min(squared_error(values, t) for t in np.linspace(histogram.amax / 50, histogram.amax, 400))
    assert squared_error(values, amax_mse(histogram)) <= 1.01 * best


def test_mse_gives_up_one_outlier_among_many() -> None:
    values = np.concatenate((rng.normal(size=10_000_000 // 50), [400.0])).astype(np.float32)
    histogram = histogram_of(values)
    best = min(squared_error(values, t) for t in np.geomspace(1, histogram.amax, 400))
    assert squared_error(values, amax_mse(histogram)) <= 1.02 * best
    assert amax_mse(histogram) < 400


def test_mse_keeps_a_grid_that_represents_everything() -> None:
    grid = np.repeat(np.arange(128), 50).astype(np.float32)
    assert amax_mse(histogram_of(grid)) == pytest.approx(127, rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_entropy_is_the_least_divergence_computed_element_by_element(shape: str) -> None:
    histogram = histogram_of(SHAPES[shape].astype(np.float32)[:4000])
    chosen = amax_entropy(histogram)
    last = int(histogram.amax / histogram.bin_width) + 1
    bins = min(int(np.ceil(chosen / histogram.bin_width)), last)
    least = divergence(histogram, bins)
    assert np.isfinite(least)
    for other in {128, bins - 8, bins + 8, bins + 40, 1000, 2000, last}:
        if 128 <= other <= last:
            assert least <= divergence(histogram, other) * (1 + 1e-9) + 1e-12


def test_divergence_is_that_of_its_definition_at_every_threshold() -> None:
    values = np.concatenate((np.abs(SHAPES["laplace"][:3000]), [30.0] * 40)).astype(np.float32)
    histogram = histogram_of(values)
    counts = histogram.counts.astype(float)
    counts[0] = counts[1]
    last = int(histogram.amax / histogram.bin_width) + 1
    bins = np.array([*range(128, last, 97), last - 1, last])
    expected = [divergence(histogram, int(count)) for count in bins]
    assert np.isinf(expected).any()
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(_divergences(counts[:last], bins), expected, rtol=1e-9, atol=1e-12)


def test_entropy_ignores_the_zeros_of_a_relu() -> None:
    positive = np.abs(SHAPES["gaussian"]).astype(np.float32)
    with_zeros = np.concatenate((positive, np.zeros(500_000, np.float32)))
    assert amax_entropy(histogram_of(with_zeros)) == amax_entropy(histogram_of(positive))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
class TestDegenerate:
    def test_dead_tensor_has_threshold_zero(self, method: object) -> None:
        assert method(histogram_of(np.zeros(10))) == 0.0  # type: ignore[operator]

    @pytest.mark.parametrize("value", [1.0, 3.7, 1e-30, 1e-44, 3e38])
    def test_one_value_is_kept(self, method: object, value: float) -> None:
        value = float(np.float32(value))
        assert method(histogram_of(np.full(10, value))) == pytest.approx(value, rel=0.01)  # type: ignore[operator]

    def test_one_outlier_leaves_a_positive_threshold(self, method: object) -> None:
        histogram = histogram_of([0.0] * 100_000 + [1e-4] * 1000 + [100.0])
        assert 0 < method(histogram) <= 100.0  # type: ignore[operator]

    @given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30))
    @settings(max_examples=30, deadline=None)
    def test_threshold_is_never_above_amax(self, method: object, values: list[float]) -> None:
        histogram = histogram_of(values)
        threshold = method(histogram)  # type: ignore[operator]
        assert 0 <= threshold <= histogram.amax
        assert (threshold > 0) == (histogram.amax > 0)

    def test_threshold_scales_with_the_values(self, method: object) -> None:
        values = SHAPES["laplace"].astype(np.float32)
        whole, eighth = method(histogram_of(values)), method(histogram_of(values / 8))  # type: ignore[operator]
        assert eighth == whole / 8


def test_percentage_is_read_from_the_name() -> None:
    histogram = histogram_of(SHAPES["gaussian"])
    assert parse_method("percentile:99.9")(histogram) == amax_percentile(histogram, 99.9)
    assert parse_method("percentile")(histogram) == amax_percentile(histogram, 99.99)
    assert parse_method("entropy") is amax_entropy


@pytest.mark.parametrize("text", ["0", "101", "-3", "many", "", "nan", "inf"])
def test_impossible_percentage_is_refused(text: str) -> None:
    with pytest.raises(CalibrationError, match=r"not a percentage.*percentile:99.9"):
        parse_method(f"percentile:{text}")


@pytest.mark.parametrize(
    ("name", "hint"), [("mes", "'mse'"), ("entropi", "'entropy'"), ("percentil:99", "'percentile'")]
)
def test_unknown_method_is_refused_with_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(CalibrationError, match=f"'{name}' is not a calibration method.*Did you mean {hint}"):
        parse_method(name)


@pytest.mark.parametrize("name", ["quantum", "max:3", ""])
def test_unknown_method_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(CalibrationError, match="use one of max, percentile, mse, entropy"):
        parse_method(name)
