"""The comparison of methods says what a direct measurement says."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.methods.comparison import compare_methods
from calibration.methods.thresholds import METHODS
from calibration.scales import LEVELS
from tests.calibration.statistics.histograms import histogram_of

X = np.abs(np.random.default_rng(0).normal(size=100_000)).astype(np.float32)


def test_sqnr_and_clipping_are_those_of_the_array() -> None:
    histogram = histogram_of(X)
    thresholds = {"t": {name: method(histogram) for name, method in METHODS.items()}}
    found = compare_methods({"t": histogram}, thresholds)
    for result in found.tensors["t"].values():
        step = result.threshold / LEVELS
        error = np.clip(np.rint(X / step), -LEVELS, LEVELS) * step - X.astype(np.float64)
        assert result.sqnr_db == pytest.approx(
            10 * np.log10(np.square(X, dtype=np.float64).sum() / np.square(error).sum()), abs=0.1
        )
        assert result.clipped == pytest.approx(float((result.threshold < X).mean()), abs=2e-4)
        assert result.logits_rms is None
    best = max(found.tensors["t"], key=lambda name: found.tensors["t"][name].sqnr_db or 0)
    assert best == "mse"
    assert found.together == {}


def test_a_dead_tensor_has_no_signal_to_compare() -> None:
    histogram = histogram_of(np.zeros((4, 4), np.float32))
    result = compare_methods({"t": histogram}, {"t": {"max": 0.0}}).tensors["t"]["max"]
    assert (result.sqnr_db, result.clipped, result.logits_rms) == (None, 0.0, None)
