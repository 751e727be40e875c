"""Clipping thresholds: pure functions from a histogram of magnitudes to the largest magnitude worth representing.

    max         amax itself
    percentile  upper edge of the bin below which 99.99 % of all elements lie
    mse         least expected squared error of the 8-bit grid, rounding and clipping together
    entropy     least Kullback-Leibler divergence between the clipped distribution and its 128-level version

Each is positive unless the tensor is dead (all zeros), and never above amax. The fifth method, ``logit``, needs more
than the histogram: see ``equalization``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.scales import LEVELS
from calibration.statistics.observers import Histogram

Method = Callable[[Histogram], float]

DEFAULT_PERCENT = 99.99
_GRID = 48
_GROUPS = 128
_STRIDE = 8


def amax_max(histogram: Histogram) -> float:
    """The largest magnitude seen: nothing is clipped."""
    return histogram.amax


def amax_percentile(histogram: Histogram, percent: float = DEFAULT_PERCENT) -> float:
    """Upper edge of the first bin at which ``percent`` of all elements, zeros included, are reached."""
    reached = np.cumsum(histogram.counts)
    needed = percent / 100.0 * int(reached[-1])
    upper_edge = (int(np.searchsorted(reached, needed)) + 1) * histogram.bin_width
    return min(upper_edge, histogram.amax)


def amax_mse(histogram: Histogram) -> float:
    """Threshold of least expected squared error on the grid {-127..127} * threshold / 127.

    A geometric grid of thresholds from one bin to amax is searched first, then the surroundings of its best.
    """
    top = histogram.amax / histogram.bin_width
    if top <= 1.0:
        return histogram.amax
    used = histogram.counts[: int(top) + 1]
    coarse = np.geomspace(1.0, top, _GRID)
    best = int(np.argmin(squared_errors(used, coarse)))
    fine = np.linspace(coarse[max(best - 1, 0)], coarse[min(best + 1, _GRID - 1)], _GRID)
    fine = np.append(fine, coarse[best])
    threshold = fine[np.argmin(squared_errors(used, fine))] * histogram.bin_width
    return min(float(threshold), histogram.amax)


def amax_entropy(histogram: Histogram) -> float:
    """Threshold of least divergence D(P || Q), as in TensorRT's entropy calibration.

    P is the distribution below the threshold with everything above it in the last bin; Q is P without
    that, averaged over 128 groups of bins. Every eighth bin edge (0.4 % of amax at most) is tried, from 128 bins
    to all of them. The first bin takes the count of the second: the zeros after a ReLU are exact on every grid and
    would outweigh the rest.
    """
    counts = histogram.counts.astype(np.float64)
    counts[0] = counts[1]
    last = int(histogram.amax / histogram.bin_width) + 1
    if last <= _GROUPS or not counts.any():
        return histogram.amax
    bins = np.append(np.arange(_GROUPS, last, _STRIDE), last)
    best = bins[np.argmin(_divergences(counts[:last], bins))]
    return min(float(best) * histogram.bin_width, histogram.amax)


def squared_error(histogram: Histogram, threshold: float) -> float:
    """Expected squared error of the 8-bit grid with this threshold, summed over all values; 0 for a dead tensor."""
    if not histogram.amax or threshold <= 0:
        return 0.0
    in_bins = squared_errors(histogram.counts, np.array([threshold / histogram.bin_width]))
    return float(in_bins[0]) * histogram.bin_width**2


METHODS: dict[str, Method] = {
    "max": amax_max,
    "percentile": amax_percentile,
    "percentile:99.9": partial(amax_percentile, percent=99.9),
    "percentile:99.999": partial(amax_percentile, percent=99.999),
    "mse": amax_mse,
    "entropy": amax_entropy,
}
"""Methods whose thresholds every table holds; another percentage is added where the user asks for it."""

LOGIT = "logit"
"""Name of the method whose thresholds ``equalization`` chooses by what each error does to the logits."""


def check_method(name: str) -> None:
    """Raise the error of ``parse_method`` for a method that does not exist."""
    if name != LOGIT:
        parse_method(name)


def parse_method(name: str) -> Method:
    """The method called ``name``; ``percentile:99.9`` is percentile with that percentage.

    Raises:
        CalibrationError: no such method, or a percentage that is not above 0 and up to 100.
    """
    kind, colon, argument = name.partition(":")
    if kind == "percentile" and colon:
        return partial(amax_percentile, percent=_percent(argument))
    if name in METHODS:
        return METHODS[name]
    kinds = ", ".join(method for method in METHODS if ":" not in method)
    close = get_close_matches(kind, (*METHODS, LOGIT), n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    raise CalibrationError(
        f"'{name}' is not a calibration method: use one of {kinds}, {LOGIT}, or percentile:99.9.{hint}"
    )


def _percent(text: str) -> float:
    try:
        percent = float(text)
    except ValueError:
        percent = math.nan
    if not 0.0 < percent <= 100.0:
        raise CalibrationError(
            f"percentile:{text} is not a percentage: write a number up to 100, such as percentile:99.9"
        )
    return percent


def squared_errors(counts: NDArray[np.int64], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Summed squared error for each threshold, in bins: elements are taken as spread evenly over their bin.

    The integral of the squared error from 0 to an edge u is k * s**3 / 12 + (u - k * s)**3 / 3 with the grid
    point k = min(round(u / s), 127); beyond the last grid point the second term is the clipping error.
    """
    edges = np.arange(counts.size + 1, dtype=np.float64)
    step = thresholds[:, None] / LEVELS
    k = np.minimum(np.rint(edges / step), LEVELS)
    rest = edges - k * step
    integral = k * (step**3 / 12) + rest * rest * rest / 3
    return np.asarray(np.diff(integral, axis=1) @ counts.astype(np.float64))


def _divergences(counts: NDArray[np.float64], bins: NDArray[np.intp]) -> NDArray[np.float64]:
    """D(P || Q) for each number of bins kept; infinite where P has mass that Q has not.

    With group sums S, occupied bins n, clipped mass o (added to P's last bin) and total T:
    D = sum p log p - sum S log(S / n) - o log(S_last / n_last) + T log(Q's total / T), all over T.
    """
    mass = np.concatenate(([0.0], np.cumsum(counts)))
    occupied = np.concatenate(([0.0], np.cumsum(counts > 0)))
    self_information = np.concatenate(([0.0], np.cumsum(_x_log_x(counts))))
    total, inside = mass[-1], mass[bins]
    clipped = total - inside
    last = counts[bins - 1]

    edges = bins[:, None] * np.arange(_GROUPS + 1) // _GROUPS
    sums, sizes = np.diff(mass[edges], axis=1), np.diff(occupied[edges], axis=1)
    sizes[:, -1] += (last == 0) & (clipped > 0)
    level = np.log(sums, out=np.zeros_like(sums), where=sums > 0)
    level -= np.log(sizes, out=np.zeros_like(sizes), where=sizes > 0)

    p_log_p = self_information[bins] - _x_log_x(last) + _x_log_x(last + clipped)
    p_log_q = (sums * level).sum(axis=1) + clipped * level[:, -1]
    p_log_q += total * (np.log(total) - np.log(inside, out=np.zeros_like(inside), where=inside > 0))
    impossible = (clipped > 0) & (sums[:, -1] == 0)
    return np.where(impossible | (inside == 0), np.inf, (p_log_p - p_log_q) / total)


def _x_log_x(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return x * np.log(x, out=np.zeros_like(x), where=x > 0)
