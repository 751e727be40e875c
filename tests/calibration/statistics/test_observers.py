from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.statistics.observers import BINS, Histogram, RangeObserver
from tests.calibration.statistics.histograms import histogram_of

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
small = st.floats(-100, 100, width=32)


def observed(batches: list[NDArray[np.float32]]) -> Histogram:
    observer = RangeObserver("t")
    for batch in batches:
        observer.update(batch)
    return observer.histogram()


def same(a: Histogram, b: Histogram) -> bool:
    return (a.bin_width, a.minimum, a.maximum) == (b.bin_width, b.minimum, b.maximum) and np.array_equal(
        a.counts, b.counts
    )


@given(st.lists(st.one_of(numbers, small), min_size=1, max_size=60), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_order_and_split_of_the_batches_change_no_bit(values: list[float], random: object) -> None:
    whole = histogram_of(np.array(values, np.float32))
    random.shuffle(values)  # type: ignore[attr-defined]
    cut = random.randint(0, len(values))  # type: ignore[attr-defined]
    parts = [np.array(values[:cut], np.float32), np.array(values[cut:], np.float32)]
    assert same(observed(parts), whole)
    assert same(observed([np.array([value], np.float32) for value in values]), whole)


@given(st.lists(numbers, min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
def test_every_value_lies_in_its_bin_and_amax_in_the_upper_half(values: list[float]) -> None:
    array = np.array(values, np.float32)
    histogram = histogram_of(array)
    expected = np.bincount(
        np.floor(np.abs(array.astype(np.float64)) / histogram.bin_width).astype(int), minlength=BINS
    )
    assert np.array_equal(histogram.counts, expected)
    assert histogram.amax == np.abs(array).max()
    if histogram.amax >= 2.0**-114:  # below, the bins stay at the smallest width
        assert histogram.counts[BINS // 2 :].any()


def test_chunks_of_a_large_array_are_all_counted() -> None:
    array = np.random.default_rng(0).normal(size=200_001).astype(np.float32)
    histogram = histogram_of(array.reshape(3, -1))
    expected = np.bincount((np.abs(array) / np.float32(histogram.bin_width)).astype(int), minlength=BINS)
    assert np.array_equal(histogram.counts, expected)
    assert (histogram.minimum, histogram.maximum) == (array.min(), array.max())


@pytest.mark.parametrize(
    ("amax", "width"), [(1.0, 2.0**-11), (np.nextafter(np.float32(1), 0), 2.0**-12), (4096.0, 2.0)]
)
def test_width_is_the_smallest_power_of_two_that_holds_amax(amax: float, width: float) -> None:
    assert histogram_of(np.float32(amax)).bin_width == width


def test_value_on_a_bin_edge_belongs_to_the_bin_above() -> None:
    histogram = histogram_of(np.array([1.0, 2.0**-11, np.nextafter(np.float32(2.0**-11), 0)], np.float32))
    assert histogram.counts[[0, 1, 2, 2048]].tolist() == [1, 1, 0, 1]


def test_signs_do_not_matter_for_the_counts_but_are_kept_in_the_range() -> None:
    histogram = histogram_of(np.array([-3.0, 1.0, -1.0], np.float32))
    assert (histogram.minimum, histogram.maximum, histogram.amax) == (-3.0, 1.0, 3.0)
    assert histogram.counts[int(1.0 / histogram.bin_width)] == 2


def test_dead_tensor_has_all_its_elements_in_the_first_bin() -> None:
    histogram = histogram_of(np.zeros((2, 3), np.float32))
    assert (histogram.amax, histogram.counts[0], histogram.total) == (0.0, 6, 6)


def test_range_may_grow_from_the_smallest_to_the_largest_number() -> None:
    extremes = np.array([1e-45, 1.0, np.finfo(np.float32).max], np.float32)
    assert same(observed([extremes[:1], extremes[1:2], extremes[2:]]), histogram_of(extremes))


def test_snapshot_does_not_change_with_later_batches() -> None:
    observer = RangeObserver("t")
    observer.update(np.ones(4, np.float32))
    before = observer.histogram()
    observer.update(np.ones(4, np.float32))
    assert (before.total, observer.histogram().total) == (4, 8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_tensor_name(bad: float) -> None:
    with pytest.raises(
        CalibrationError, match=r"'layer1\.0\.conv2' holds NaN or infinity.*check the weights"
    ):
        RangeObserver("layer1.0.conv2").update(np.array([1.0, bad, 2.0], np.float32))


def test_tensor_without_any_element_has_no_histogram() -> None:
    with pytest.raises(CalibrationError, match="'t' was never observed"):
        observed([np.zeros((0, 3), np.float32)])
