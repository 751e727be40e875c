"""References of ``ops.convolution``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.layout import nhwc
from fused_kernels.operands.partials import Partials
from fused_kernels.references.arithmetic import activated, batch_norm, gradient_sums, moments, summable, wide
from fused_kernels.references.passes import bn_backward


def conv_moments(x: Tensor, w: Tensor, conv: Conv, vectors: Tensor | None = None) -> tuple[Tensor, Partials]:
    y = conv_plain(x, w, conv, vectors)
    return y, moments(y)


def conv_plain(x: Tensor, w: Tensor, conv: Conv, vectors: Tensor | None = None) -> Tensor:
    y = F.conv2d(summable(activated(x, vectors)), summable(w), stride=conv.stride, padding=conv.padding)
    return nhwc(y.to(x.dtype))


def dgrad_drelu(dy: Tensor, w: Tensor, conv: Conv, y: Tensor, vectors: Tensor) -> tuple[Tensor, Partials]:
    g = nhwc(torch.where(batch_norm(y, vectors) > 0, _dgrad(dy, w, conv, y.shape), 0.0).to(y.dtype))
    return g, gradient_sums(g, (y, vectors))


def dgrad_block(
    dy: Tensor,
    w: Tensor,
    conv: Conv,
    shortcut: Tensor,
    stride: int,
    z: Tensor,
    y: Tensor,
    vectors: Tensor,
    d: Tensor | None = None,
    d_vectors: Tensor | None = None,
) -> tuple[Tensor, Partials]:
    full = _dgrad(dy, w, conv, z.shape) + _spread(shortcut, z.shape, stride)
    g = nhwc(torch.where(z > 0, full, 0.0).to(z.dtype))
    return g, gradient_sums(g, (y, vectors), (d, d_vectors))


def dgrad_shortcut(
    dy: Tensor, w: Tensor, conv: Conv, size: Sequence[int], shortcut: Tensor | None, stride: int = 1
) -> Tensor:
    dx = _dgrad(dy, w, conv, size)
    if shortcut is not None:
        dx = dx + _spread(shortcut, size, stride)
    return nhwc(dx.to(dy.dtype))


def wgrad(x: Tensor, dy: Tensor, conv: Conv, vectors: Tensor | None = None) -> Tensor:
    size = (dy.shape[1], x.shape[1], conv.r, conv.s)
    a, dy = summable(activated(x, vectors)), summable(dy)
    return wide(conv2d_weight(a, size, dy, stride=conv.stride, padding=conv.padding))  # type: ignore[no-untyped-call]


def wgrad_and_dy(
    x: Tensor,
    g: Tensor,
    y: Tensor,
    y_vectors: Tensor,
    coefficients: Tensor,
    conv: Conv,
    vectors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    dy = bn_backward(g, y, y_vectors, coefficients)
    return wgrad(x, dy, conv, vectors), dy


def _dgrad(dy: Tensor, w: Tensor, conv: Conv, size: Sequence[int]) -> Tensor:
    """Gradient of the convolution's input [N, C, H, W], wide."""
    w, dy = summable(w), summable(dy)
    return wide(conv2d_input(list(size), w, dy, stride=conv.stride, padding=conv.padding))  # type: ignore[no-untyped-call]


def _spread(shortcut: Tensor, size: Sequence[int], stride: int) -> Tensor:
    """A shortcut's gradient at every ``stride``-th pixel of the shape ``size``, wide."""
    if stride == 1:
        return wide(shortcut)
    full = torch.zeros(tuple(size), dtype=wide(shortcut).dtype, device=shortcut.device)
    full[:, :, ::stride, ::stride] = wide(shortcut)
    return full
