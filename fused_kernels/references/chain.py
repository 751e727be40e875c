"""Reference of ``ops.chain``."""

from __future__ import annotations

from torch import Tensor

from fused_kernels.operands.folded import Folded
from fused_kernels.operands.geometry import Conv
from fused_kernels.references.inference import convolve


def chain(
    x: Tensor,
    conv2: Folded,
    conv3: Folded,
    residual: Tensor,
    conv1: Folded | None = None,
    *,
    stride: int = 1,
    residual_scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    h = convolve(x, conv2, Conv(3, 3, stride, 1))
    z = convolve(h, conv3, Conv(1, 1), residual, residual_scale)
    return z, None if conv1 is None else convolve(z, conv1, Conv(1, 1))
