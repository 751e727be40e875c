"""Arithmetic that several references share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_kernels.operands.layout import per_channel
from fused_kernels.operands.partials import Partials


def wide(x: Tensor) -> Tensor:
    """``x`` in the dtype that arithmetic is done in."""
    return x if x.dtype == torch.float64 else x.float()


def summable(x: Tensor) -> Tensor:
    """``x``, or ``x`` wide on a CPU: 16-bit convolutions add up in 16 bits there, and oneDNN's are wrong with AMX.

    It gets bf16 convolutions with strides wrong on planes one to three pixels wide.
    """
    return wide(x) if x.device.type == "cpu" else x


def batch_norm(y: Tensor, vectors: Tensor) -> Tensor:
    """y * scale + shift, wide."""
    return wide(y) * per_channel(vectors[2]) + per_channel(vectors[3])


def centred(y: Tensor, vectors: Tensor) -> Tensor:
    """y - mean, wide."""
    return wide(y) - per_channel(vectors[0])


def activated(x: Tensor, vectors: Tensor | None) -> Tensor:
    """relu(bn(x)) in the dtype of x, or x."""
    return x if vectors is None else F.relu(batch_norm(x, vectors)).to(x.dtype)


def moments(y: Tensor) -> Partials:
    """Mean and M2 of ``y`` [N, C, H, W] by channel: one tile, whose mean is corrected as the kernels' is."""
    count = y.numel() // y.shape[1]
    mean = _channel_sum(wide(y)) / count
    deviation = wide(y) - per_channel(mean)
    exact = mean.double() + _channel_sum(deviation).double() / count
    m2 = _channel_sum(deviation.square()).double()
    return Partials(torch.stack([exact, m2])[:, None], count, count)


def gradient_sums(g: Tensor, *outputs: tuple[Tensor | None, Tensor | None]) -> Partials:
    """Sum of g, and of g * (y - mean) for each (y, vectors) that is not None."""
    sums = [_channel_sum(wide(g))]
    for y, vectors in outputs:
        if y is not None and vectors is not None:
            sums.append(_channel_sum(wide(g) * centred(y, vectors)))
    count = g.numel() // g.shape[1]
    return Partials(torch.stack(sums)[:, None], count, count)


def batch_norm_gradient(g: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    """a * g + b * (y - mean) + c, wide."""
    a, b, c = (per_channel(row) for row in coefficients)
    return a * wide(g) + b * centred(y, vectors) + c


def to_int8(v: Tensor, *, low: int) -> Tensor:
    """The nearest whole number, ties to even, saturated to [low, 127]."""
    return torch.round(v).clamp(low, 127).to(torch.int8)


def _channel_sum(v: Tensor) -> Tensor:
    return v.sum(dim=(0, 2, 3))
