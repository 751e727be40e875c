"""How the sensitivity of a tensor's values depends on their size.

The logits often care less for a pixel that is already large: in the stem of ResNet-50 the largest third of a channel's
range has half of the mean squared gradient, the middle 1.5 times of it. Clipping costs less there than the mean says,
and rounding in the middle more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

BUCKETS = 36
"""Six for each octave of |x| / amax of the channel, from 1/64 to 1; the first takes everything below."""

_PER_OCTAVE = 6
_PRIOR = 0.002
"""Of a tensor's mean weight in a bucket: so much is taken as known to have the mean sensitivity."""


def bucket_of(ratio: NDArray[np.float64]) -> NDArray[np.int64]:
    """Bucket of each |x| / amax; of numbers above 1 the last."""
    octaves = np.log2(np.maximum(ratio, 2.0**-8)) * _PER_OCTAVE
    return np.asarray(np.clip(np.floor(octaves).astype(np.int64) + BUCKETS, 0, BUCKETS - 1))


class MagnitudeObserver:
    """Sums up squared gradients of one tensor by the size of the value. Zeros, which no grid moves, are left out."""

    def __init__(self, amax: NDArray[np.float64]) -> None:
        """``amax`` [C], the largest magnitude of each channel."""
        self._amax = np.maximum(amax, 1e-30)
        self._counts = np.zeros((len(amax), BUCKETS))
        self._squares = np.zeros((len(amax), BUCKETS))
        self._elements = 0

    def update(self, values: Tensor, gradients: Tensor) -> None:
        """Both [1, C, ...]."""
        import torch

        channels = values.shape[1]
        rows = values[0].detach().reshape(channels, -1).abs()
        self._elements += rows.shape[1]
        at = rows.nonzero(as_tuple=True)
        ratio = rows[at] / torch.from_numpy(self._amax.astype(np.float32))[at[0]]
        index = torch.from_numpy(bucket_of(ratio.double().numpy())) + at[0] * BUCKETS
        squares = gradients[0].reshape(channels, -1)[at].double().square()
        size = channels * BUCKETS
        self._counts += torch.bincount(index, minlength=size).reshape(channels, -1).numpy()
        self._squares += torch.bincount(index, squares, minlength=size).reshape(channels, -1).numpy()

    def factors(self) -> NDArray[np.float64]:
        """[BUCKETS] mean squared gradient in each bucket over that of the whole channel, pooled over channels.

        A channel counts by the square of its range times its squared gradients: by the errors that it can make.
        """
        mean = self._squares.sum(axis=1, keepdims=True) / max(self._elements, 1)
        size = np.square(self._amax)[:, None]
        found, expected = (size * self._squares).sum(axis=0), (size * mean * self._counts).sum(axis=0)
        prior = _PRIOR * expected.sum() / BUCKETS
        if prior == 0.0:
            return np.ones(BUCKETS)
        return np.asarray((found + prior) / (expected + prior))
