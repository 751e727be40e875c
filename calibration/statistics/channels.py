"""Channel observers: one histogram of magnitudes for every channel of a tensor, and the mean of each.

Equalization needs to know how each channel would look under another scale, and bias correction needs its mean. As in
``observers`` a bin's width is a power of two that grows by doubling, here one for each channel, so the counts are the
same, bit for bit, whatever the order and the size of the batches. So are the means: their sums keep what a float64
rounds away. Ranges and means are taken of all values; of large planes only evenly spread positions are counted, the
same ones in every image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.statistics.observers import BINS as TENSOR_BINS
from calibration.statistics.observers import MIN_EXPONENT, Histogram, never_observed, not_finite, widened

if TYPE_CHECKING:
    from torch import Tensor

BINS = 512
"""A step of the 8-bit grid over a channel's range is two to four bins wide."""

_RANGE_BITS = BINS.bit_length() - 1
_CHUNK = 1 << 16
_POSITIONS = 400
"""Most positions of a plane that are counted: with hundreds of images that is plenty, and counting all would take
longer than running the network."""


@dataclass(frozen=True, eq=False)
class ChannelHistograms:
    """Magnitudes of everything that was observed at the C channels of one tensor."""

    counts: NDArray[np.int32]
    """[C, BINS], number of elements per bin of |x|, of the positions that are counted."""
    bin_widths: NDArray[np.float64]  # [C]
    minimum: NDArray[np.float32]  # [C]
    maximum: NDArray[np.float32]  # [C]
    means: NDArray[np.float64]  # [C]
    positions: int
    """Values of a channel in one image."""
    images: int

    @property
    def amax(self) -> NDArray[np.float64]:
        """Largest magnitude of each channel, exactly; [C]."""
        return np.maximum(np.maximum(-self.minimum, self.maximum), 0).astype(np.float64)

    def merged(self, factors: NDArray[np.float64] | None = None) -> Histogram:
        """Histogram of the whole tensor, each channel divided by its factor [C], its bins taken as evenly filled."""
        divisors = np.ones(len(self.counts)) if factors is None else factors
        low = float((self.minimum / divisors).min())
        high = float((self.maximum / divisors).max())
        amax = max(-low, high, 0.0)
        if amax == 0.0:
            counts = np.zeros(TENSOR_BINS, np.int64)
            counts[0] = self.counts.sum()
            return Histogram(counts, math.ldexp(1.0, MIN_EXPONENT), low, high)
        width = math.ldexp(1.0, max(math.frexp(amax)[1] - (TENSOR_BINS.bit_length() - 1), MIN_EXPONENT))
        edges = np.arange(TENSOR_BINS + 1) * width
        own = np.arange(BINS + 1)
        reached = np.zeros(TENSOR_BINS + 1)
        below = np.zeros((len(self.counts), BINS + 1))
        np.cumsum(self.counts, axis=1, out=below[:, 1:])
        for row, step, top in zip(below, self.bin_widths / divisors, self.amax / divisors, strict=True):
            # the last bin that is used ends at amax, so that nothing is spread beyond it
            bounds = np.minimum(own * step, top)
            inside = math.ceil(top / width)
            reached[:inside] += np.interp(edges[:inside], bounds, row)
            reached[inside:] += row[-1]
        return Histogram(np.diff(np.rint(reached)).astype(np.int64), width, low, high)


@dataclass(frozen=True, eq=False)
class Part:
    """What is taken from one array [N, C, ...]."""

    low: NDArray[np.float32]  # [C]
    high: NDArray[np.float32]  # [C]
    sums: NDArray[np.float64]
    """[parts, C], of one image each or of more."""
    counted: NDArray[np.float32]
    """[parts, C, values] at evenly spread positions."""
    images: int
    positions: int


def part_of(values: Tensor) -> Part:
    """The same of a tensor of PyTorch, of any floating-point type."""
    import torch

    rows = values.reshape(*values.shape[:2], -1).transpose(1, 2)
    counted = rows[:, :: position_stride(rows.shape[1])].reshape(-1, rows.shape[2])
    return Part(
        low=rows.amin((0, 1)).float().numpy(),
        high=rows.amax((0, 1)).float().numpy(),
        sums=rows.sum((0, 1), dtype=torch.float32).double()[None].numpy(),
        counted=counted.t().float().contiguous()[None].numpy(),
        images=len(rows),
        positions=rows.shape[1],
    )


class ChannelObserver:
    """Accumulates the histograms of one tensor. Several threads may call it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = Lock()
        self._positions = 0
        self._values = 0  # of each channel
        self._begin(0)

    def _begin(self, channels: int) -> None:
        # enough for five million images, and half a gigabyte less for a thousand-layer network
        self._counts = np.zeros((channels, BINS), np.int32)
        self._exponents = np.full(channels, MIN_EXPONENT)
        self._minimum = np.full(channels, np.inf, np.float32)
        self._maximum = np.full(channels, -np.inf, np.float32)
        self._sums = np.zeros(channels)
        self._rounded_away = np.zeros(channels)

    def update(self, array: NDArray[np.float32]) -> None:
        """Count ``array`` [N, C, ...]; NaN or infinity in it raise ``CalibrationError``."""
        if not array.size:
            return
        planes = array.reshape(*array.shape[:2], -1)
        positions = planes.shape[2]
        self.add(
            Part(
                low=planes.min(axis=(0, 2)),
                high=planes.max(axis=(0, 2)),
                sums=planes.sum(axis=2).astype(np.float64),
                counted=planes[:, :, :: position_stride(positions)],
                images=len(planes),
                positions=positions,
            )
        )

    def add(self, part: Part) -> None:
        """Count the summary of an array; NaN or infinity in it raise ``CalibrationError``."""
        channels = len(part.low)
        with self._lock:
            if not self._values:
                self._begin(channels)
            self._positions = part.positions
            self._values += part.images * part.positions
            self._range(part)
            for sums in part.sums:
                self._sum(sums)
            step = max(1, _CHUNK // part.counted.shape[2])
            for start in range(0, channels, step):
                rows = slice(start, start + step)
                for values in part.counted:  # while the rows' counts are in the cache
                    self._count(rows, values[rows])

    def histograms(self) -> ChannelHistograms:
        """A snapshot of what was seen so far; ``CalibrationError`` if that is nothing."""
        if not self._values:
            raise never_observed(self.name)
        return ChannelHistograms(
            self._counts.copy(),
            np.ldexp(1.0, self._exponents),
            self._minimum.copy(),
            self._maximum.copy(),
            (self._sums + self._rounded_away) / self._values,
            self._positions,
            self._values // self._positions,
        )

    def _range(self, part: Part) -> None:
        """Take ranges."""
        low, high = part.low, part.high
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise not_finite(self.name)
        amax = np.maximum(-low, high)
        needed = np.where(amax > 0, np.frexp(amax)[1] - _RANGE_BITS, MIN_EXPONENT)
        doublings = np.maximum(needed - self._exponents, 0)
        if np.isfinite(self._minimum).all():  # else nothing is counted yet
            for count in np.unique(doublings[doublings > 0]):
                rows = doublings == count
                self._counts[rows] = widened(self._counts[rows], int(count))
        self._exponents += doublings
        np.minimum(self._minimum, low, out=self._minimum)
        np.maximum(self._maximum, high, out=self._maximum)

    def _sum(self, values: NDArray[np.float64]) -> None:
        """Add ``values`` [C] to the sums, and what rounding takes away (Knuth's two-sum) to its own sums."""
        total = self._sums + values
        rest = total - self._sums
        self._rounded_away += (self._sums - (total - rest)) + (values - rest)
        self._sums = total

    def _count(self, part: slice, rows: NDArray[np.float32]) -> None:
        """Count ``rows`` [channels of ``part``, elements]."""
        scaled = rows * np.ldexp(np.float32(1), -self._exponents[part]).astype(np.float32)[:, None]
        index = np.abs(scaled, out=scaled).astype(np.intp)
        index += (np.arange(len(rows)) * BINS)[:, None]
        # in place: a batch has fewer values of a channel than there are bins to add
        np.add.at(self._counts[part].reshape(-1), index.reshape(-1), np.int32(1))


def position_stride(positions: int) -> int:
    """Step between the positions of a plane that are looked at: odd, to walk through all columns of an even width."""
    return -(-positions // _POSITIONS) | 1
