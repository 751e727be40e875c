"""Sensitivity of the logits by the size of a value.

The logits often care less for a pixel that is already large: in the stem of ResNet-50 the largest third of a channel's
range has half of the mean squared gradient, the middle 1.5 times of it. Clipping costs less there than the mean says,
and rounding in the middle more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.statistics.channels import position_stride

if TYPE_CHECKING:
    from torch import Tensor

BUCKETS = 49
"""Eight of equal width for each octave of |x| / amax of the channel from 1/64 to 1, and the first for all below."""

_SHIFT = 20
"""Leaves the exponent and three bits of the mantissa of a float32."""
_FIRST = (127 - 6 << 3) - 1
_PRIOR = 0.002
"""Share of a tensor's mean weight in a bucket that is assumed to have the mean sensitivity."""


def bucket_of(ratio: NDArray[np.floating]) -> NDArray[np.int32]:
    """Bucket of each |x| / amax; numbers above 1 fall into the last."""
    bits = np.ascontiguousarray(ratio, np.float32).view(np.int32) >> _SHIFT
    return np.asarray(np.clip(bits - _FIRST, 0, BUCKETS - 1))


class MagnitudeObserver:
    """Sums up squared gradients of one tensor by the size of the value."""

    def __init__(self, amax: NDArray[np.float64]) -> None:
        """``amax`` [C] is the largest magnitude of each channel."""
        self._amax = np.maximum(amax, 1e-30)
        self._counts = np.zeros((len(amax), BUCKETS))
        self._squares = np.zeros((len(amax), BUCKETS))

    def update(self, values: Tensor, gradients: Tensor) -> None:
        """Add one image's ``values`` and ``gradients``, both [1, C, ...]."""
        import torch

        channels = values.shape[1]
        rows, slopes = values[0].detach().reshape(channels, -1), gradients[0].reshape(channels, -1)
        step = position_stride(rows.shape[1])
        ratio = (rows[:, ::step].abs() / torch.from_numpy(self._amax).float()[:, None]).numpy()
        index = (bucket_of(ratio) + (np.arange(channels, dtype=np.int32) * BUCKETS)[:, None]).reshape(-1)
        squares = slopes[:, ::step].square().numpy().reshape(-1)
        size = channels * BUCKETS
        self._counts += np.bincount(index, minlength=size).reshape(channels, -1)
        self._squares += np.bincount(index, squares, minlength=size).reshape(channels, -1)

    def factors(self) -> NDArray[np.float64]:
        """[BUCKETS] mean squared gradient in each bucket over that of the whole channel, pooled over channels.

        A channel is weighted by the square of its range times its squared gradients: by the errors that it can make.
        The first bucket holds the zeros of a ReLU, exact on every grid, so it takes the factor of the second.
        """
        mean = self._squares.sum(axis=1, keepdims=True) / np.maximum(
            self._counts.sum(axis=1, keepdims=True), 1
        )
        size = np.square(self._amax)[:, None]
        found, expected = (size * self._squares).sum(axis=0), (size * mean * self._counts).sum(axis=0)
        prior = _PRIOR * expected.sum() / BUCKETS
        if prior == 0.0:
            return np.ones(BUCKETS)
        factors = (found + prior) / (expected + prior)
        factors[0] = factors[1]
        return np.asarray(factors)
