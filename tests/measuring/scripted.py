"""Timings as a race would give them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rescompile.measuring.timing import Timing, timing


def steady(p50: float, *, noise: float = 0.01, rounds: int = 12, seed: int = 0) -> Timing:
    """Rounds around ``p50`` milliseconds whose runs have a standard deviation of ``noise`` times it."""
    rng = np.random.default_rng(seed)
    return timing([list(p50 * (1 + noise * rng.standard_normal(20))) for _ in range(rounds)])


def of_rounds(medians: Sequence[float]) -> Timing:
    """One run a round."""
    return timing([[value] for value in medians])
