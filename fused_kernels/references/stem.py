"""References of ``ops.stem``; they take the image, or undo its packing with a slice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from fused_kernels.operands.folded import Folded
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.layout import nhwc
from fused_kernels.operands.partials import Partials
from fused_kernels.references.arithmetic import (
    batch_norm,
    batch_norm_gradient,
    gradient_sums,
    moments,
    summable,
    wide,
)
from fused_kernels.references.image import pack
from fused_kernels.references.inference import convolve


def stem_conv_moments(image: Tensor, w: Tensor, conv: Conv) -> tuple[Tensor, Partials, Tensor]:
    y, packed = stem_conv(image, w, conv)
    return y, moments(y), packed


def stem_conv(image: Tensor, w: Tensor, conv: Conv) -> tuple[Tensor, Tensor]:
    y = F.conv2d(summable(image.to(w.dtype)), summable(w), stride=conv.stride, padding=conv.padding)
    return nhwc(y.to(w.dtype)), pack(image, conv, w.dtype)


def stem_pool(y: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    z, flat = F.max_pool2d(F.relu(batch_norm(y, vectors)), 3, 2, 1, return_indices=True)
    h, w = flat // y.shape[3], flat % y.shape[3]
    p = torch.arange(z.shape[2], device=y.device)[:, None]
    q = torch.arange(z.shape[3], device=y.device)
    index = (h - (2 * p - 1)) * 3 + w - (2 * q - 1)
    return nhwc(z.to(y.dtype)), nhwc(index.to(torch.uint8))


def stem_pool_sums(dz: Tensor, index: Tensor, y: Tensor, vectors: Tensor) -> Partials:
    return gradient_sums(_before_relu(_from_windows(dz, index, y), y, vectors), (y, vectors))


def stem_pool_backward(dz: Tensor, index: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    g = _before_relu(_from_windows(dz, index, y), y, vectors)
    return nhwc(batch_norm_gradient(g, y, vectors, coefficients).to(y.dtype))


def stem_activate_sums(dz: Tensor, y: Tensor, vectors: Tensor) -> Partials:
    return gradient_sums(_before_relu(wide(dz), y, vectors), (y, vectors))


def stem_activate_backward(dz: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    g = _before_relu(wide(dz), y, vectors)
    return nhwc(batch_norm_gradient(g, y, vectors, coefficients).to(y.dtype))


def stem_wgrad(packed: Tensor, dy: Tensor, conv: Conv, channels: int) -> Tensor:
    columns = (dy.shape[3] - 1) * conv.stride + conv.s
    # the columns of ``packed`` are padded already, its rows are not
    x, padding = packed[:, :, :columns, :channels].permute(0, 3, 1, 2), (conv.padding, 0)
    size = (dy.shape[1], channels, conv.r, conv.s)
    dw = conv2d_weight(summable(x), size, summable(dy), stride=conv.stride, padding=padding)  # type: ignore[no-untyped-call]
    return nhwc(wide(dw))


def stem_inference(image: Tensor, layer: Folded, conv: Conv, *, pool: bool) -> Tensor:
    """``ops.stem.stem_inference`` of an image that is converted already."""
    z = convolve(image.to(layer.w.dtype), layer, conv)
    return nhwc(F.max_pool2d(wide(z), 3, 2, 1).to(z.dtype)) if pool else z


def _from_windows(dz: Tensor, index: Tensor, y: Tensor) -> Tensor:
    """The sum of dz over the windows whose maximum is at each pixel of ``y``, in the wide dtype."""
    n, c, h, w = y.shape
    p, q = dz.shape[2:]
    padded = torch.zeros((n, c, 2 * p + 1, 2 * q + 1), dtype=wide(dz).dtype, device=y.device)
    for place in range(9):
        i, j = divmod(place, 3)
        padded[:, :, i : i + 2 * p : 2, j : j + 2 * q : 2] += torch.where(index == place, wide(dz), 0.0)
    return padded[:, :, 1 : 1 + h, 1 : 1 + w]


def _before_relu(v: Tensor, y: Tensor, vectors: Tensor) -> Tensor:
    return torch.where(batch_norm(y, vectors) > 0, v, 0.0)
