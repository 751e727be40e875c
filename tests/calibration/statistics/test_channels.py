"""Channel histograms: exact, the same whatever the batches, and true to the tensor they come from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.statistics.channels import BINS, ChannelHistograms, ChannelObserver
from tests.calibration.statistics.histograms import histogram_of


def observed(*batches: NDArray[np.float32]) -> ChannelHistograms:
    observer = ChannelObserver("t")
    for batch in batches:
        observer.update(batch)
    return observer.histograms()


def tensor(seed: int, images: int = 6, channels: int = 5, side: int = 3) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-4, 5, channels)
    return (rng.normal(size=(images, channels, side, side)) * sizes[:, None, None]).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.permutations(range(6)), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_order_and_split_of_the_batches_change_neither_counts_nor_means(
    seed: int, order: list[int], cut: int
) -> None:
    x = tensor(seed)
    whole, parts = observed(x), observed(x[order][:cut], x[order][cut:])
    assert np.array_equal(whole.counts, parts.counts)
    assert np.array_equal(whole.bin_widths, parts.bin_widths)
    assert np.array_equal(whole.minimum, parts.minimum)
    assert np.array_equal(whole.maximum, parts.maximum)
    assert np.array_equal(whole.means, parts.means)


def test_every_channel_is_counted_in_bins_of_its_own_range() -> None:
    x = tensor(0, images=60, side=19)  # large enough for several chunks of channels
    seen = observed(x)
    for channel, width in enumerate(seen.bin_widths):
        values = np.abs(x[:, channel].astype(np.float64))
        expected = np.bincount((values / width).astype(int).reshape(-1), minlength=BINS)
        assert np.array_equal(seen.counts[channel], expected)
        assert seen.counts[channel, BINS // 2 :].any()
        assert seen.amax[channel] == values.max()
    assert np.allclose(seen.means, x.mean(axis=(0, 2, 3), dtype=np.float64), rtol=1e-6)


def test_of_large_planes_positions_in_all_columns_are_counted_and_all_values_are_in_the_range() -> None:
    x = tensor(7, images=2, channels=1, side=40)
    x[1, 0, 39, 39], x[0, 0, 20, 21] = 1e7, -2e7  # not among the positions
    seen = observed(x)
    assert (seen.minimum[0], seen.maximum[0]) == (-2e7, 1e7)
    assert seen.counts.sum() == 2 * len(range(0, 1600, 5))
    assert {position % 40 for position in range(0, 1600, 5)} != {0}
    assert seen.means[0] == pytest.approx(float(x.mean(dtype=np.float64)), rel=1e-6)
    assert seen.positions == 1600


def test_features_without_positions_have_channels_too() -> None:
    x = tensor(1, side=1)
    assert np.array_equal(observed(x).counts, observed(x[:, :, 0, 0]).counts)


def test_merging_gives_the_tensors_range_and_nearly_its_histogram() -> None:
    x = np.random.default_rng(2).normal(size=(18, 4, 20, 20)).astype(np.float32)
    merged, exact = observed(x).merged(), histogram_of(x)
    assert (merged.minimum, merged.maximum, merged.bin_width) == (
        exact.minimum,
        exact.maximum,
        exact.bin_width,
    )
    assert merged.total == exact.total
    distance = np.abs(np.cumsum(merged.counts) - np.cumsum(exact.counts)).max() / exact.total
    assert distance < 2e-3


def test_merging_divides_every_channel_by_its_factor() -> None:
    x = tensor(3, side=20)
    factors = np.abs(x).max(axis=(0, 2, 3)).astype(np.float64)
    merged = observed(x).merged(factors)
    assert merged.amax == pytest.approx(1.0)
    direct = observed((x / factors.astype(np.float32)[:, None, None]).astype(np.float32)).merged()
    distance = np.abs(np.cumsum(merged.counts) - np.cumsum(direct.counts)).max() / direct.total
    assert distance < 5e-3


def test_a_dead_channel_and_a_dead_tensor_are_all_zeros() -> None:
    x = tensor(4)
    x[:, 2] = 0
    assert observed(x).amax[2] == 0
    dead = observed(np.zeros((2, 3, 2, 2), np.float32)).merged()
    assert (dead.amax, dead.counts[0], dead.total) == (0.0, 24, 24)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    x = tensor(5)
    x[1, 3, 0, 0] = bad
    with pytest.raises(CalibrationError, match="'t' holds NaN or infinity"):
        observed(x)


def test_a_tensor_that_was_never_seen_has_no_histograms() -> None:
    with pytest.raises(CalibrationError, match="'t' was never observed"):
        observed(np.zeros((0, 3, 2, 2), np.float32))
