"""Percentiles and the interval of the median."""

from __future__ import annotations

import numpy as np
import pytest

from rescompile.measuring.timing import timing
from tests.measuring.scripted import steady


def test_percentiles_are_those_of_all_runs() -> None:
    runs = [float(value) for value in range(1, 101)]
    found = timing([runs[::2], runs[1::2]])
    assert (found.min, found.p50, found.runs) == (1.0, 50.5, 100)
    assert found.p90 == pytest.approx(np.percentile(runs, 90))
    assert found.p99 == pytest.approx(np.percentile(runs, 99))
    assert found.spread == pytest.approx((found.p90 - found.p10) / 50.5)
    assert found.rounds == (50.0, 51.0)


def test_the_median_lies_in_its_interval_and_more_rounds_make_it_narrower() -> None:
    few, many = steady(10, noise=0.1, rounds=5), steady(10, noise=0.1, rounds=60)
    assert few.low <= few.p50 <= few.high
    assert many.high - many.low < few.high - few.low


def test_a_disturbed_round_widens_the_interval_however_many_runs_it_has() -> None:
    quiet = timing([[10.0] * 100] * 4)
    disturbed = timing([[10.0] * 100] * 4 + [[20.0] * 100] * 4)
    assert (quiet.low, quiet.high) == (10.0, 10.0)
    assert disturbed.high == 20.0


def test_samples_keep_the_ends_and_stay_few() -> None:
    found = timing([[float(value) for value in range(5000)]])
    assert len(found.samples) == 400
    assert (found.samples[0], found.samples[-1]) == (0.0, 4999.0)
    assert timing([[3.0, 1.0, 2.0]]).samples == (1.0, 2.0, 3.0)


def test_no_time_at_all_has_no_spread() -> None:
    assert timing([[0.0, 0.0]]).spread == 0.0
