"""References of ``ops.inference``.

Integer sums are exact: fp64 holds all sums below 2**53 in any order, and fp32 those that the weights keep below 2**24.
The steps after them are fp32 with one rounding each, so kernels and references agree to the bit.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_kernels.operands.folded import Folded
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.layout import nhwc, per_channel
from fused_kernels.operands.zero_point import crossed_borders
from fused_kernels.references.arithmetic import summable, to_int8, wide

FP32_WHOLE = 2**24
"""Up to here fp32 holds every whole number."""


def convolve(
    x: Tensor,
    layer: Folded,
    conv: Conv,
    residual: Tensor | None = None,
    residual_scale: float | None = None,
) -> Tensor:
    """``ops.inference.conv_int8`` where the layer has a scale, ``conv_bias`` where it has none."""
    if layer.scale is None:
        v = wide(F.conv2d(summable(x), summable(layer.w), stride=conv.stride, padding=conv.padding))
        v = v + per_channel(layer.bias)
        if residual is not None:
            v = v + wide(residual)
        return nhwc((F.relu(v) if layer.relu else v).to(x.dtype))
    sums = _int32_sums(x, layer.w, conv)
    if layer.zero_sums is not None:
        borders = crossed_borders(conv, x.shape[2], x.shape[3]).to(x.device)
        sums = sums + layer.zero_sums[borders].permute(2, 0, 1)
    v = sums.float() * per_channel(layer.scale) + per_channel(layer.bias)
    if residual is not None and residual_scale is not None:
        v = v + residual.float() * torch.tensor(residual_scale, dtype=torch.float32, device=x.device)
    return nhwc(to_int8(v, low=0 if layer.relu else -128))


def _int32_sums(x: Tensor, w: Tensor, conv: Conv) -> Tensor:
    """The int32 sums of a convolution of int8 tensors."""
    if x.device.type == "cpu" and 128 * int(w.int().abs().sum(dim=(1, 2, 3)).max()) < FP32_WHOLE:
        # no partial sum leaves fp32's whole numbers; NNPACK's transforms would, and are off
        with torch.backends.nnpack.flags(enabled=False):
            sums = F.conv2d(x.float(), w.float(), stride=conv.stride, padding=conv.padding)
    else:
        sums = F.conv2d(x.double(), w.double(), stride=conv.stride, padding=conv.padding).round()
    return sums.to(torch.int32)
