"""A convolution with its batch norm folded in, for inference."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Folded:
    """Weight, bias and, in int8, the scale from units of the sums to units of the result."""

    w: Tensor
    """[K, C, R, S]."""
    bias: Tensor
    """fp32 [K]; for int8 in units of the result."""
    scale: Tensor | None = None
    """fp32 [K], only in int8; see ``ops.inference.requantization``."""
    relu: bool = field(default=True, kw_only=True)
    """Whether a ReLU follows; without one int8 saturates to [-128, 127]."""
    zero_sums: Tensor | None = field(default=None, kw_only=True)
    """int32 [16, K] from ``zero_point.zero_sums``, for an int8 3x3 if its input stores zero as another integer."""
