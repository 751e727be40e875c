"""Summary of many times of one call: percentiles, and a 95 % interval of the median.

Runs of one round follow each other closely and are disturbed together, so the interval is a bootstrap over the rounds:
their medians are drawn with replacement, and the middle 95 % of the medians of these draws is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

_DRAWS = 2000
_KEPT_SAMPLES = 400
"""Enough to plot a distribution, and few enough for a small report."""


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds of one call, over all runs of all rounds."""

    p50: float
    p10: float
    p90: float
    p99: float
    min: float
    low: float
    """Lower end of the 95 % interval of the median."""
    high: float
    runs: int
    rounds: tuple[float, ...]
    """Median of each round, in their order."""
    samples: tuple[float, ...] = ()
    """At most 400 of the runs, sorted and evenly picked, as the distribution."""

    @property
    def spread(self) -> float:
        """Width of the middle 80 % of the runs, as a share of the median."""
        return (self.p90 - self.p10) / self.p50 if self.p50 else 0.0


def timing(rounds: Sequence[Sequence[float]]) -> Timing:
    """The summary of ``rounds``, each the milliseconds of one or more runs in their order; one round or more."""
    medians = np.array([np.median(runs) for runs in rounds])
    ordered = np.sort(np.concatenate([np.asarray(runs, np.float64) for runs in rounds]))
    p10, p50, p90, p99 = (float(value) for value in np.percentile(ordered, [10, 50, 90, 99]))
    low, high = _interval(medians)
    picked = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _KEPT_SAMPLES)).round().astype(int))
    return Timing(
        p50=p50,
        p10=p10,
        p90=p90,
        p99=p99,
        min=float(ordered[0]),
        low=min(low, p50),
        high=max(high, p50),
        runs=len(ordered),
        rounds=tuple(float(value) for value in medians),
        samples=tuple(float(value) for value in ordered[picked]),
    )


def _interval(medians: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the median of ``medians``; the same figures give the same interval."""
    draws = np.random.default_rng(0).choice(medians, (_DRAWS, len(medians)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return float(low), float(high)
