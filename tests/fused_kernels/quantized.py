"""Integer arithmetic of the int8 operations in NumPy, loops and all: nothing here comes from ``fused_kernels``.

``v`` is computed in float32, one rounding for each operation and in the order of the specification.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fused_kernels.operands.layout import nhwc
from tests.fused_kernels.conftest import normal

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


class Layer(NamedTuple):
    """A quantized convolution or matrix product."""

    w: Tensor
    scale: Tensor
    bias: Tensor


def random_int8(*shape: int, low: int = -128) -> Tensor:
    """Seeded numbers from all of [low, 127]; rank 4 in NHWC memory."""
    values = (torch.rand(shape, dtype=torch.float64) * (128 - low) + low).floor().to(torch.int8)
    return nhwc(values) if len(shape) == 4 else values


def random_layer(k: int, c: int, r: int, s: int, *, spread: float = 60.0) -> Layer:
    """A layer whose results have a standard deviation of ``spread`` (before saturation) and whose scales differ."""
    w = random_int8(k, c, r, s)
    size = spread / (74.0 * 74.0 * (c * r * s) ** 0.5)
    return Layer(w, (torch.rand(k) + 0.5) * size, normal(k) * 10)


def integers(x: Tensor) -> Ints:
    """A tensor's numbers as int64."""
    return x.numpy().astype(np.int64)


def convolved(x: Ints, w: Ints, stride: int, padding: int) -> Ints:
    """The sums of a convolution, [N, K, P, Q]."""
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))
    sums: Ints = np.einsum("nchwrs,kcrs->nkhw", windows[:, :, ::stride, ::stride], w)
    return sums


def per_channel(vector: Tensor) -> Floats:
    """[K] to [K, 1, 1]."""
    return vector.numpy()[:, None, None]


def to_int8(v: Floats, low: int) -> NDArray[np.int8]:
    """NumPy's ``rint`` takes ties to the even neighbour."""
    assert v.dtype == np.float32
    return np.clip(np.rint(v), low, 127).astype(np.int8)


def conv_int8(
    x: Any,
    layer: Layer,
    window: tuple[int, int],
    *,
    relu: bool,
    residual: Tensor | None = None,
    residual_scale: float = 1.0,
) -> Tensor:
    """The right result of ``ops.inference.conv_int8``; ``window`` is (stride, padding)."""
    v = convolved(integers(x), integers(layer.w), *window).astype(np.float32) * per_channel(layer.scale)
    v = v + per_channel(layer.bias)
    if residual is not None:
        v = v + residual.numpy().astype(np.float32) * np.float32(residual_scale)
    return torch.from_numpy(to_int8(v, 0 if relu else -128))


def pool_fc_int8(x: Tensor, pool_scale: float, layer: Layer) -> Tensor:
    """The right result of ``ops.head.pool_fc_int8``; the layer's weight is [classes, C]."""
    total = integers(x).sum(axis=(2, 3)).astype(np.float32)
    pooled = to_int8(total * np.float32(pool_scale), -128).astype(np.int64)
    sums = (pooled @ integers(layer.w).T).astype(np.float32)
    return torch.from_numpy(sums * layer.scale.numpy() + layer.bias.numpy())


def assert_same_bits(name: str, result: Tensor, truth: Tensor) -> None:
    """Equal in shape, dtype and every number; a failure names the tensor and the worst difference."""
    assert result.shape == truth.shape, f"{name} has shape {tuple(result.shape)}, not {tuple(truth.shape)}"
    assert result.dtype == truth.dtype, f"{name} is {result.dtype}, not {truth.dtype}"
    wrong = result != truth
    worst = (result.double() - truth.double()).abs().max().item() if truth.numel() else 0.0
    assert not wrong.any(), f"{name}: {int(wrong.sum())} of {truth.numel()} numbers differ, by up to {worst}"
