"""Every operation for inference in plain PyTorch: what the kernels must compute, and what runs where they cannot.

Same names, arguments and results as ``ops.inference``, ``ops.chain`` and ``ops.head``. Integer sums are exact: fp64
holds each of them, whatever the order, while they stay below 2**53, and so does fp32 where the weights keep them below
2**24. What follows them is fp32, one rounding for each operation, so kernels and references agree to the bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_kernels.geometry import Conv
from fused_kernels.layout import nhwc, per_channel
from fused_kernels.references import wide
from fused_kernels.zero_point import crossed_borders

if TYPE_CHECKING:
    from fused_kernels.ops.chain import Folded


def conv_bias(
    x: Tensor, w: Tensor, bias: Tensor, conv: Conv, *, relu: bool, residual: Tensor | None = None
) -> Tensor:
    """See ``ops.inference.conv_bias``."""
    # 16-bit convolutions on a CPU also add up in 16 bits; elsewhere the hardware's own are meant
    operands = (wide(x), wide(w)) if x.device.type == "cpu" else (x, w)
    v = wide(F.conv2d(*operands, stride=conv.stride, padding=conv.padding)) + per_channel(bias)
    if residual is not None:
        v = v + wide(residual)
    return nhwc((F.relu(v) if relu else v).to(x.dtype))


def conv_int8(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    bias: Tensor,
    conv: Conv,
    *,
    relu: bool,
    residual: Tensor | None = None,
    residual_scale: float | None = None,
    zero_sums: Tensor | None = None,
) -> Tensor:
    """See ``ops.inference.conv_int8``."""
    acc = _sums(x, w, conv)
    if zero_sums is not None:
        borders = crossed_borders(conv, x.shape[2], x.shape[3]).to(x.device)
        acc = acc + zero_sums[borders].permute(2, 0, 1)
    v = acc.float() * per_channel(scale) + per_channel(bias)
    if residual is not None and residual_scale is not None:
        v = v + residual.float() * torch.tensor(residual_scale, dtype=torch.float32, device=x.device)
    return nhwc(to_int8(v, low=0 if relu else -128))


FP32_WHOLE = 2**24
"""Up to here fp32 holds every whole number."""


def _sums(x: Tensor, w: Tensor, conv: Conv) -> Tensor:
    """The int32 sums of a convolution of int8 tensors."""
    if x.device.type == "cpu" and 128 * int(w.int().abs().sum(dim=(1, 2, 3)).max()) < FP32_WHOLE:
        # no partial sum leaves fp32's whole numbers; NNPACK's transforms would, and are off
        with torch.backends.nnpack.flags(enabled=False):
            sums = F.conv2d(x.float(), w.float(), stride=conv.stride, padding=conv.padding)
    else:
        sums = F.conv2d(x.double(), w.double(), stride=conv.stride, padding=conv.padding).round()
    return sums.to(torch.int32)


def to_int8(v: Tensor, *, low: int) -> Tensor:
    """To the nearest whole number, ties to even, within [low, 127]."""
    return torch.round(v).clamp(low, 127).to(torch.int8)


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
    """See ``ops.chain.chain``."""
    h = _convolved(x, conv2, Conv(3, 3, stride, 1))
    z = _convolved(h, conv3, Conv(1, 1), residual, residual_scale)
    return z, None if conv1 is None else _convolved(z, conv1, Conv(1, 1))


def _convolved(
    x: Tensor, layer: Folded, conv: Conv, residual: Tensor | None = None, residual_scale: float | None = None
) -> Tensor:
    if layer.scale is None:
        return conv_bias(x, layer.w, layer.bias, conv, relu=layer.relu, residual=residual)
    return conv_int8(
        x,
        layer.w,
        layer.scale,
        layer.bias,
        conv,
        relu=layer.relu,
        residual=residual,
        residual_scale=residual_scale,
        zero_sums=layer.zero_sums,
    )


def pool_fc(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """See ``ops.head.pool_fc``."""
    pooled = wide(x).mean(dim=(2, 3)).to(x.dtype)
    return F.linear(wide(pooled), wide(w)) + b


def pool_fc_int8(x: Tensor, pool_scale: float, w: Tensor, scale: Tensor, b: Tensor) -> Tensor:
    """See ``ops.head.pool_fc_int8``."""
    total = x.sum(dim=(2, 3), dtype=torch.int64).to(torch.int32)
    pooled = to_int8(total.float() * torch.tensor(pool_scale, dtype=torch.float32, device=x.device), low=-128)
    acc = (pooled.double() @ w.double().T).round().to(torch.int32)
    return acc.float() * scale + b
