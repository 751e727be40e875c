"""Channel factors and step sizes of least error in the logits, chosen together.

Cross-layer equalization (Nagel et al., 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction") balances the ranges of the weights on both sides of a ReLU. Here the factors minimize ``noise`` instead,
which knows what an error in each channel does to the logits, over all channels that belong together, also along the
residual stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.methods.noise import Array, NoiseModel

STEPS = 80
_RATE = 0.1
_BETAS = (0.9, 0.99)
_THREADS = 2
_CANDIDATES = np.log(2.0) * np.linspace(-6.0, 1.25, 117)
"""log of a threshold over the largest range; unseen images may exceed it, by ``noise.TAIL``."""


@dataclass(frozen=True)
class Equalized:
    """The choice of ``equalize``."""

    factors: dict[str, NDArray[np.float32]]
    """Tensor to the factors [C] that its channels are divided by."""
    thresholds: dict[str, float]
    """Quantized tensor to its clipping threshold after that division."""


def best_log_steps(model: NoiseModel, log_factors: Array) -> Array:
    """Logarithm of the best step of each quantized tensor for given factors of the groups."""
    steps = []
    for name, noise in model.activations.items():
        own = log_factors[model.groups.of[name]]
        candidates = _CANDIDATES + float((noise.log_ranges - own).max()) - np.log(noise.levels)
        errors = noise(candidates[:, None] + own)[0].sum(axis=1)
        steps.append(candidates[int(np.argmin(errors))])
    return np.array(steps)


def total_noise(
    model: NoiseModel, log_factors: Array, log_steps: Array, run: Callable[..., Iterable[Any]] = map
) -> tuple[float, Array, Array]:
    """The whole error with its derivatives by ``log_factors`` [groups] and ``log_steps`` [tensors].

    ``run`` is ``map``, or the one of a pool of threads.
    """
    names = list(model.weights)
    parts = run(
        lambda part: [model.weights[name](log_factors[model.groups.of[model.inputs[name]]]) for name in part],
        [names[thread::_THREADS] for thread in range(_THREADS)],
    )
    groups, tensors = model.activation_groups, model.activation_tensors
    errors, slopes = model.activation_curves(log_steps[tensors] + log_factors[groups])
    total = float(errors.sum())
    by_step = np.asarray(np.bincount(tensors, slopes, minlength=len(log_steps)), np.float64)
    by_factor = np.asarray(np.bincount(groups, slopes, minlength=len(log_factors)), np.float64)
    found: dict[str, tuple[float, Array]] = {}
    for thread, results in enumerate(parts):
        found.update(zip(names[thread::_THREADS], results, strict=True))
    if found:
        gradients = np.concatenate([found[name][1] for name in names])
        by_factor += np.bincount(model.weight_groups, gradients, minlength=len(by_factor))
    total += sum(found[name][0] for name in names)
    by_factor[0] = 0.0
    return total, by_factor, by_step


def equalize(model: NoiseModel, *, channels: bool = True) -> Equalized:
    """Minimize ``total_noise`` by Adam on its logarithm; with ``channels=False`` all factors stay 1."""
    log_factors = np.zeros(model.groups.count)
    log_steps = best_log_steps(model, log_factors)
    if channels:
        log_factors = _minimize(model, log_factors, log_steps)
        log_steps = best_log_steps(model, log_factors)
    factors = np.exp(log_factors).astype(np.float32)
    thresholds = {
        name: float(np.exp(step) * noise.levels)
        for (name, noise), step in zip(model.activations.items(), log_steps, strict=True)
    }
    return Equalized({name: factors[ids] for name, ids in model.groups.of.items()}, thresholds)


def _minimize(model: NoiseModel, log_factors: Array, log_steps: Array) -> Array:
    """Factors after ``STEPS`` steps of Adam that move factors and step sizes together, with a falling rate."""
    groups = len(log_factors)
    pool = ThreadPoolExecutor(_THREADS)
    point = np.concatenate([log_factors, log_steps])
    first, second = np.zeros_like(point), np.zeros_like(point)
    for step in range(1, STEPS + 1):
        total, *slopes = total_noise(model, point[:groups], point[groups:], pool.map)
        gradient = np.concatenate(slopes) / total
        first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
        second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient**2
        ahead = first / (1 - _BETAS[0] ** step)
        spread = np.sqrt(second / (1 - _BETAS[1] ** step)) + 1e-12
        point -= _RATE * (1 - (step - 1) / STEPS) * ahead / spread
    pool.shutdown()
    return point[:groups]
