"""Sensitivity by magnitude: what gradients say of large and small values, and what thresholds make of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibration.methods.noise import ActivationNoise
from calibration.statistics.channels import ChannelObserver
from calibration.statistics.sensitivity import BUCKETS, MagnitudeObserver, bucket_of

STEPS = np.log(np.linspace(0.2, 1.2, 101) / 127)


def test_buckets_are_eighths_of_octaves_and_the_ends_take_the_rest() -> None:
    found = bucket_of(np.array([0.0, 1e-9, 2.0**-6 * 0.99, 2.0**-6, 0.51, 0.99, 1.0, 7.0]))
    assert found.tolist() == [0, 0, 0, 1, 41, 48, 48, 48]
    assert (np.diff(bucket_of(np.linspace(0.02, 1, 500))) >= 0).all()


def test_factors_are_the_gradients_of_each_size_and_zeros_do_not_count() -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.uniform(0.05, 1, (1, 8, 20, 20)).astype(np.float32))
    values[:, :, ::2] = 0
    gradients = torch.where(values > 0.5, 3.0, 1.0) * torch.where(values == 0, 5.0, 1.0)
    sizes = np.arange(1, 9)
    observer = MagnitudeObserver(sizes.astype(np.float64))
    scale = torch.from_numpy(sizes.astype(np.float32))[:, None, None]
    observer.update(values * scale, gradients)
    found = observer.factors()
    assert found[46] / found[30] == pytest.approx(9, rel=0.1)
    assert found[:8] == pytest.approx(1), "sizes that were not seen are taken to be like the rest"


def test_of_large_planes_some_positions_are_enough() -> None:
    x = torch.from_numpy(np.random.default_rng(3).uniform(0, 1, (1, 2, 90, 90)).astype(np.float32))
    observer = MagnitudeObserver(np.ones(2))
    observer.update(x, x)
    found = observer.factors()
    assert found[48] == pytest.approx(3, rel=0.15)
    assert found[24] < 0.1


def test_a_tensor_without_gradients_has_no_preference() -> None:
    observer = MagnitudeObserver(np.ones(2))
    observer.update(torch.ones(1, 2, 3, 3), torch.zeros(1, 2, 3, 3))
    assert (observer.factors() == np.ones(BUCKETS)).all()


@pytest.mark.parametrize(("of_large", "clips"), [(0.05, True), (20.0, False)])
def test_large_values_that_matter_less_are_clipped_sooner(of_large: float, clips: bool) -> None:
    observer = ChannelObserver("x")
    observer.update(np.abs(np.random.default_rng(1).normal(size=(1, 1, 200, 200))).astype(np.float32))
    magnitudes = np.ones(BUCKETS)
    magnitudes[int(bucket_of(np.array([0.5]))[0]) :] = of_large
    chosen = []
    for factors in (None, magnitudes):
        seen = observer.histograms()
        model = ActivationNoise(seen, np.ones(1), 1.0, tail=0.0, magnitudes=factors)
        steps = STEPS + np.log(seen.amax[0])
        chosen.append(steps[np.argmin([float(model(np.array([step]))[0][0]) for step in steps])])
    assert (chosen[1] < chosen[0]) == clips
