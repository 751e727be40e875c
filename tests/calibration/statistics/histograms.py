"""Histograms of single arrays."""

from __future__ import annotations

from numpy.typing import ArrayLike

from calibration.statistics.observers import Histogram, RangeObserver


def histogram_of(array: ArrayLike, *, name: str = "tensor") -> Histogram:
    """Histogram of ``array`` alone."""
    observer = RangeObserver(name)
    observer.update(array)
    return observer.histogram()
