"""Every fused operation in plain PyTorch: what the kernels must compute, and what runs where they cannot.

Same names, arguments and results as ``ops``; arithmetic between convolutions is fp32 (fp64 for fp64 tensors), and
whatever ``ops`` stores is rounded to the activation's dtype at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from fused_kernels.geometry import Conv
from fused_kernels.layout import nhwc, per_channel
from fused_kernels.ops.partials import Partials


def wide(x: Tensor) -> Tensor:
    """``x`` in the dtype that arithmetic is done in."""
    return x if x.dtype == torch.float64 else x.float()


def batch_norm(y: Tensor, vectors: Tensor) -> Tensor:
    """y * scale + shift, wide."""
    return wide(y) * per_channel(vectors[2]) + per_channel(vectors[3])


def centred(y: Tensor, vectors: Tensor) -> Tensor:
    """y - mean, wide."""
    return wide(y) - per_channel(vectors[0])


def activated(x: Tensor, vectors: Tensor | None) -> Tensor:
    """relu(bn(x)) in the dtype of x, or x."""
    return x if vectors is None else F.relu(batch_norm(x, vectors)).to(x.dtype)


def channel_sum(v: Tensor) -> Tensor:
    """[N, C, H, W] to [C]."""
    return v.sum(dim=(0, 2, 3))


def moments(y: Tensor) -> Partials:
    """Mean and M2 of ``y`` [N, C, H, W] by channel: one tile, whose mean is corrected as the kernels' is."""
    count = y.numel() // y.shape[1]
    mean = channel_sum(wide(y)) / count
    deviation = wide(y) - per_channel(mean)
    exact = mean.double() + channel_sum(deviation).double() / count
    m2 = channel_sum(deviation.square()).double()
    return Partials(torch.stack([exact, m2])[:, None], count, count)


def conv_moments(x: Tensor, w: Tensor, conv: Conv, vectors: Tensor | None = None) -> tuple[Tensor, Partials]:
    """See ``ops.convolution.conv_moments``."""
    y = nhwc(F.conv2d(activated(x, vectors), w, stride=conv.stride, padding=conv.padding))
    return y, moments(y)


def conv_plain(x: Tensor, w: Tensor, conv: Conv, vectors: Tensor | None = None) -> Tensor:
    """See ``ops.convolution.conv_plain``."""
    return nhwc(F.conv2d(activated(x, vectors), w, stride=conv.stride, padding=conv.padding))


def dgrad(dy: Tensor, w: Tensor, conv: Conv, size: Sequence[int]) -> Tensor:
    """Gradient of the convolution's input [N, C, H, W], wide."""
    w, dy = _summable(w), _summable(dy)
    grad = conv2d_input(list(size), w, dy, stride=conv.stride, padding=conv.padding)  # type: ignore[no-untyped-call]
    return wide(grad)


def gradient_sums(g: Tensor, *outputs: tuple[Tensor, Tensor]) -> Partials:
    """Sum of g, and of g * (y - mean) for each (y, vectors)."""
    sums = [channel_sum(wide(g))]
    sums += [channel_sum(wide(g) * centred(y, vectors)) for y, vectors in outputs]
    count = g.numel() // g.shape[1]
    return Partials(torch.stack(sums)[:, None], count, count)


def dgrad_drelu(dy: Tensor, w: Tensor, conv: Conv, y: Tensor, vectors: Tensor) -> tuple[Tensor, Partials]:
    """See ``ops.convolution.dgrad_drelu``."""
    g = torch.where(batch_norm(y, vectors) > 0, dgrad(dy, w, conv, y.shape), 0.0).to(y.dtype)
    g = nhwc(g)
    return g, gradient_sums(g, (y, vectors))


def spread(shortcut: Tensor, size: Sequence[int], stride: int) -> Tensor:
    """A strided shortcut's gradient at every ``stride``-th pixel of the shape ``size``, wide."""
    if stride == 1:
        return wide(shortcut)
    full = torch.zeros(tuple(size), dtype=wide(shortcut).dtype, device=shortcut.device)
    full[:, :, ::stride, ::stride] = wide(shortcut)
    return full


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
    """See ``ops.convolution.dgrad_block``."""
    full = dgrad(dy, w, conv, z.shape) + spread(shortcut, z.shape, stride)
    g = nhwc(torch.where(z > 0, full, 0.0).to(z.dtype))
    projection = () if d is None or d_vectors is None else ((d, d_vectors),)
    return g, gradient_sums(g, (y, vectors), *projection)


def dgrad_shortcut(
    dy: Tensor, w: Tensor, conv: Conv, size: Sequence[int], shortcut: Tensor | None, stride: int = 1
) -> Tensor:
    """See ``ops.convolution.dgrad_shortcut``."""
    dx = dgrad(dy, w, conv, size)
    if shortcut is not None:
        dx = dx + spread(shortcut, size, stride)
    return nhwc(dx.to(dy.dtype))


def wgrad(x: Tensor, dy: Tensor, conv: Conv, vectors: Tensor | None = None) -> Tensor:
    """See ``ops.convolution.wgrad``."""
    size = (dy.shape[1], x.shape[1], conv.r, conv.s)
    a, dy = _summable(activated(x, vectors)), _summable(dy)
    dw = conv2d_weight(a, size, dy, stride=conv.stride, padding=conv.padding)  # type: ignore[no-untyped-call]
    return wide(dw)


def join(y: Tensor, vectors: Tensor, shortcut: Tensor, shortcut_vectors: Tensor | None = None) -> Tensor:
    """See ``ops.passes.join``."""
    other = wide(shortcut) if shortcut_vectors is None else batch_norm(shortcut, shortcut_vectors)
    return nhwc(F.relu(batch_norm(y, vectors) + other).to(y.dtype))


def entry(
    dz: Tensor,
    z: Tensor,
    y: Tensor,
    vectors: Tensor,
    d: Tensor | None = None,
    d_vectors: Tensor | None = None,
) -> tuple[Tensor, Partials]:
    """See ``ops.passes.entry``."""
    g = nhwc(torch.where(z > 0, dz, 0.0).to(z.dtype))
    projection = () if d is None or d_vectors is None else ((d, d_vectors),)
    return g, gradient_sums(g, (y, vectors), *projection)


def bn_backward(g: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    """See ``ops.passes.bn_backward``."""
    return nhwc(batch_norm_gradient(g, y, vectors, coefficients).to(g.dtype))


def batch_norm_gradient(g: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    """a * g + b * (y - mean) + c, wide."""
    a, b, c = (per_channel(row) for row in coefficients)
    return a * wide(g) + b * centred(y, vectors) + c


def merge(partials: Partials) -> Tensor:
    """See ``ops.statistics.merge``."""
    mean, m2 = partials.rows.double()
    sizes = _sizes(partials)[:, None]
    total = (sizes * mean).sum(0) / sizes.sum()
    within = m2.sum(0) + (sizes * (mean - total).square()).sum(0)
    return torch.stack([total, within])


def finalize(
    partials: Partials,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
) -> tuple[Tensor, Tensor | None]:
    """See ``ops.statistics.finalize``."""
    mean, m2 = merge(partials)
    count = _sizes(partials).sum()
    vectors = _affine(mean, m2 / count, gamma, beta, eps).to(wide(gamma).dtype)
    if running is None:
        return vectors, None
    unbiased = m2 / (count - 1).clamp(min=1)
    new = torch.stack(
        [running[0].double().lerp(mean, momentum), running[1].double().lerp(unbiased, momentum)]
    )
    return vectors, new.to(running[0].dtype)


def frozen(running: tuple[Tensor, Tensor], gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    """See ``ops.statistics.frozen``."""
    mean, variance = (value.double() for value in running)
    return _affine(mean, variance, gamma, beta, eps).to(wide(running[0]).dtype)


def _affine(mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    invstd = 1 / torch.sqrt(variance + eps)
    scale = gamma.double() * invstd
    return torch.stack([mean, invstd, scale, beta.double() - mean * scale])


def sums(partials: Partials) -> Tensor:
    """See ``ops.statistics.sums``."""
    return partials.rows.double().sum(1).to(partials.rows.dtype)


def coefficients(sum_g: Tensor, sum_gy: Tensor, vectors: Tensor, count: int, *, is_frozen: bool) -> Tensor:
    """See ``ops.statistics.coefficients``."""
    _, invstd, scale, _ = vectors.double()
    if is_frozen:
        zero = torch.zeros_like(scale)
        return torch.stack([scale, zero, zero]).to(vectors.dtype)
    b = -scale * invstd.square() * sum_gy.double() / count
    return torch.stack([scale, b, -scale * sum_g.double() / count]).to(vectors.dtype)


def _summable(x: Tensor) -> Tensor:
    """``x``, or ``x`` wide on a CPU, where gradients of 16-bit convolutions also add up in 16 bits."""
    return wide(x) if x.device.type == "cpu" else x


def _sizes(partials: Partials) -> Tensor:
    if partials.counts is not None:
        return partials.counts.double()
    starts = torch.arange(partials.tiles, device=partials.rows.device) * partials.per_tile
    return (partials.count - starts).clamp(max=partials.per_tile).double()
