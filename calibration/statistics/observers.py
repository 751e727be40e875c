"""Observers see activations once, batch by batch, and keep an exact histogram of their magnitudes.

    bin i counts  i * w <= |x| < (i + 1) * w,   w = 2**k the smallest power of two with amax < BINS * w

A batch that exceeds the range doubles w until it fits, and each doubling adds neighbouring bins pairwise. Because
w is a power of two, floor(|x| / w) is exact in fp32 and floor(floor(|x| / w) / 2) = floor(|x| / 2w): the result
is the same, bit for bit, whatever the order and the size of the batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calibration.errors import CalibrationError

BINS = 4096
"""amax falls into the upper half of the bins, so a step of the 8-bit grid is at least 16 bins wide."""
MIN_EXPONENT = -126
"""1 / bin_width must be a finite fp32 number."""

Count = TypeVar("Count", np.int32, np.int64)

_RANGE_BITS = BINS.bit_length() - 1
_CHUNK = 1 << 16  # elements whose buffers stay in the second-level cache; measured best of 2**13 to 2**18


@dataclass(frozen=True, eq=False)
class Histogram:
    """Magnitudes of everything that was observed at one tensor."""

    counts: NDArray[np.int64]
    """[BINS], number of elements per bin of |x|."""
    bin_width: float
    minimum: float
    maximum: float

    @property
    def amax(self) -> float:
        """Largest magnitude, exactly."""
        return max(-self.minimum, self.maximum, 0.0)

    @property
    def total(self) -> int:
        """Number of elements observed."""
        return int(self.counts.sum())


class RangeObserver:
    """Accumulates the histogram of one tensor. Several threads may call it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = Lock()
        self._counts = np.zeros(BINS, np.int64)
        self._exponent = MIN_EXPONENT
        self._minimum = math.inf
        self._maximum = -math.inf

    def update(self, array: ArrayLike) -> None:
        """Count ``array`` (any shape, read as float32); NaN or infinity in it raise ``CalibrationError``."""
        flat = np.asarray(array, np.float32).reshape(-1)
        buffers = _Buffers(min(flat.size, _CHUNK))
        with self._lock:
            for start in range(0, flat.size, _CHUNK):
                self._count(flat[start : start + _CHUNK], buffers)

    def histogram(self) -> Histogram:
        """A snapshot of what was seen so far; ``CalibrationError`` if that is nothing."""
        if self._minimum > self._maximum:
            raise never_observed(self.name)
        width = math.ldexp(1.0, self._exponent)
        return Histogram(self._counts.copy(), width, self._minimum, self._maximum)

    def _count(self, chunk: NDArray[np.float32], buffers: _Buffers) -> None:
        low, high = float(chunk.min()), float(chunk.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise not_finite(self.name)
        amax = max(-low, high)
        needed = math.frexp(amax)[1] - _RANGE_BITS if amax else MIN_EXPONENT
        if needed > self._exponent:
            self._counts = widened(self._counts, needed - self._exponent)
            self._exponent = needed
        scaled, bins, index = (buffer[: chunk.size] for buffer in buffers.arrays)
        np.multiply(chunk, np.float32(math.ldexp(1.0, -self._exponent)), out=scaled)
        if low < 0:
            np.abs(scaled, out=scaled)
        np.copyto(bins, scaled, casting="unsafe")
        np.copyto(index, bins)
        self._counts += np.bincount(index, minlength=BINS)
        self._minimum, self._maximum = min(self._minimum, low), max(self._maximum, high)


class _Buffers:
    """Scaled values, their bins, and the bins in the index type: casting in two steps vectorizes."""

    def __init__(self, size: int) -> None:
        self.arrays = (np.empty(size, np.float32), np.empty(size, np.int32), np.empty(size, np.intp))


def widened(counts: NDArray[Count], doublings: int) -> NDArray[Count]:
    """``counts`` [..., bins] of histograms whose bins are ``2**doublings`` times as wide."""
    bins = counts.shape[-1]
    merged = 1 << min(doublings, bins.bit_length() - 1)
    wider = np.zeros_like(counts)
    wider[..., : bins // merged] = counts.reshape(*counts.shape[:-1], -1, merged).sum(axis=-1)
    return wider


def not_finite(name: str) -> CalibrationError:
    """The error for a tensor with NaN or infinity in it."""
    return CalibrationError(
        f"tensor '{name}' holds NaN or infinity while calibration images run through the network: "
        "check the weights of the layers before it and the preprocessing (mean, std)"
    )


def never_observed(name: str) -> CalibrationError:
    """The error for a tensor that no image reached."""
    return CalibrationError(f"tensor '{name}' was never observed: pass at least one calibration image")
