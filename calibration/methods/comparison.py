"""All methods side by side: the cost of each one's threshold for a tensor, and for the logits."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.methods.noise import NoiseModel
from calibration.methods.thresholds import squared_error
from calibration.statistics.observers import Histogram


class MethodResult(msgspec.Struct, frozen=True):
    """One method on one tensor, by the calibration images."""

    threshold: float
    sqnr_db: float | None
    """Signal over expected error of the tensor; None for a dead tensor, or one that its grid holds exactly."""
    clipped: float
    """Share of the values beyond the threshold."""
    logits_rms: float | None
    """Expected relative RMS of the logits if this tensor alone is quantized; None without gradients."""


class Comparison(msgspec.Struct, frozen=True):
    """Every method on every quantized tensor."""

    tensors: dict[str, dict[str, MethodResult]]
    """Tensor to method to result."""
    together: dict[str, float]
    """Method to expected relative RMS of the logits, all activations quantized; empty without gradients."""


def compare_methods(
    histograms: Mapping[str, Histogram],
    thresholds: Mapping[str, Mapping[str, float]],
    noise: NoiseModel | None = None,
    factors: Mapping[str, NDArray[np.floating]] | None = None,
    exact: Collection[str] = (),
) -> Comparison:
    """Cost of the ``thresholds``, a number for each tensor and method.

    Args:
        histograms: one for every tensor, after the division by ``factors``.
        thresholds: tensor to method to threshold, as in a calibration table.
        noise: says what an error does to the logits.
        factors: channel factors [C] of every tensor, where the network is equalized.
        exact: tensors that the deployable graph quantizes without error, whatever their thresholds.
    """
    tensors = {
        name: {
            method: MethodResult(threshold, None, 0.0, None if noise is None else 0.0)
            if name in exact
            else _result(name, histogram, threshold, noise, None if factors is None else factors[name])
            for method, threshold in thresholds[name].items()
        }
        for name, histogram in histograms.items()
    }
    together: dict[str, float] = {}
    if noise is not None:
        for method in next(iter(thresholds.values())):
            parts = [entry[method].logits_rms or 0.0 for entry in tensors.values()]
            together[method] = float(np.sqrt(np.square(parts).sum()))
    return Comparison(tensors, together)


def _result(
    name: str,
    histogram: Histogram,
    threshold: float,
    noise: NoiseModel | None,
    factors: NDArray[np.floating] | None,
) -> MethodResult:
    centres = (np.arange(histogram.counts.size) + 0.5) * histogram.bin_width
    signal, error = float(np.square(centres) @ histogram.counts), squared_error(histogram, threshold)
    clips = threshold < histogram.amax
    beyond = histogram.counts[int(np.ceil(threshold / histogram.bin_width)) :].sum() if clips else 0
    logits = None
    if noise is not None and threshold > 0:
        activation = noise.activations[name]
        log_factors = 0.0 if factors is None else np.log(np.asarray(factors, np.float64))
        own = np.zeros(len(activation.log_ranges)) + log_factors
        errors, _ = activation(own + np.log(threshold / activation.levels))
        logits = float(np.sqrt(errors.sum()))
    decibel = 10 * float(np.log10(signal / error)) if histogram.amax and error > 0 else None
    return MethodResult(threshold, decibel, float(beyond / max(histogram.total, 1)), logits)
