"""The same work by torch's own operators: cuDNN's convolution, and the passes over memory that eager adds to it.

The passes are those of ``nn.SyncBatchNorm``, which has one operator for each: statistics, normalization, the sums of
the backward pass and its elementwise part. They run on a GPU alone; elsewhere plain arithmetic stands in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_kernels.operands.geometry import Conv

Peers = dict[str, Callable[[], Any]]
CUDNN = "cuDNN"
EAGER = "cuDNN + passes"
FUSED = "cuDNN fused"
EPS = 1e-5


def conv(x: Tensor, w: Tensor, window: Conv, bias: Tensor | None = None) -> Tensor:
    """The convolution alone."""
    return F.conv2d(x, w, bias, stride=window.stride, padding=window.padding)


def conv_backward(dy: Tensor, x: Tensor, w: Tensor, window: Conv, *, weight: bool) -> Tensor:
    """Gradient of a convolution's weight, or of its input."""
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, w, None, (window.stride,) * 2, (window.padding,) * 2, (1, 1), False, (0, 0), 1,
        (not weight, weight, False),
    )  # fmt: skip
    found: Tensor = dw if weight else dx
    return found


def statistics(y: Tensor) -> Any:
    """One pass that reads y."""
    if y.device.type == "cuda":
        return torch.batch_norm_stats(y, EPS)
    return torch.var_mean(y.float(), dim=(0, 2, 3), correction=0)


class Norm:
    """A batch norm's passes, its vectors [4, C] (mean, invstd, scale, shift) laid out as torch takes them."""

    def __init__(self, vectors: Tensor, count: int) -> None:
        self.mean, self.invstd, scale, shift = (row.contiguous() for row in vectors)
        self.gamma = scale / self.invstd
        self.beta = shift + self.mean * scale
        self.count = torch.full((1,), count, dtype=torch.int32, device=vectors.device)

    def apply(self, y: Tensor) -> Tensor:
        """One pass that reads y and writes it normalized."""
        if y.device.type == "cuda":
            done: Tensor = torch.batch_norm_elemt(y, self.gamma, self.beta, self.mean, self.invstd, EPS)
            return done
        scale = (self.gamma * self.invstd)[:, None, None]
        normalized: Tensor = centred(y, self.mean) * scale + self.beta[:, None, None]
        return normalized.to(y.dtype)

    def sums(self, g: Tensor, y: Tensor) -> Any:
        """One pass that reads g and y."""
        if g.device.type == "cuda":
            return torch.batch_norm_backward_reduce(
                g, y, self.mean, self.invstd, self.gamma, True, True, True
            )
        return g.float().sum((0, 2, 3)), (g.float() * centred(y, self.mean)).sum((0, 2, 3))

    def backward(self, g: Tensor, y: Tensor) -> Tensor:
        """One pass that reads g and y and writes the gradient of y; what the sums are does not change its time."""
        if g.device.type == "cuda":
            dy: Tensor = torch.batch_norm_backward_elemt(
                g, y, self.mean, self.invstd, self.gamma, self.mean, self.invstd, self.count
            )
            return dy
        return (g.float() + centred(y, self.mean)).to(g.dtype)


def centred(y: Tensor, mean: Tensor) -> Tensor:
    """y - mean in fp32."""
    return y.float() - mean[:, None, None]


def norm_of(y: Tensor, vectors: Tensor) -> Norm:
    """The batch norm on ``y``."""
    return Norm(vectors, y.numel() // y.shape[1])


def activation(y: Tensor, vectors: Tensor | None) -> Tensor:
    """relu(bn(y)), which eager has stored; or y."""
    return y if vectors is None else norm_of(y, vectors).apply(y).relu_()


def fprop_peers(x: Tensor, w: Tensor, window: Conv, vectors: Tensor | None) -> Peers:
    """conv(relu(bn(x))) and the statistics of its result."""
    stored = activation(x, vectors)
    norm = None if vectors is None else norm_of(x, vectors)

    def passes() -> Any:
        y = conv(x if norm is None else norm.apply(x).relu_(), w, window)
        return y, statistics(y)

    return {CUDNN: lambda: conv(stored, w, window), EAGER: passes}


def dgrad_peers(
    dy: Tensor, w: Tensor, window: Conv, y: Tensor, vectors: Tensor, shortcut: Tensor | None = None
) -> Peers:
    """dgrad, plus a shortcut's gradient of the same shape, where a ReLU let its input through, and the sums."""
    stored, norm = activation(y, vectors), norm_of(y, vectors)

    def passes() -> Any:
        g = conv_backward(dy, stored, w, window, weight=False)
        if shortcut is not None:
            g = g + shortcut
        g = torch.ops.aten.threshold_backward(g, stored, 0)
        return g, norm.sums(g, y)

    return {CUDNN: lambda: conv_backward(dy, stored, w, window, weight=False), EAGER: passes}


def input_gradient_peers(dy: Tensor, w: Tensor, window: Conv, x: Tensor, shortcut: Tensor | None) -> Peers:
    """dgrad, and a shortcut's gradient of the same shape added to it."""
    peers: Peers = {CUDNN: lambda: conv_backward(dy, x, w, window, weight=False)}
    if shortcut is not None:
        peers[EAGER] = lambda: conv_backward(dy, x, w, window, weight=False) + shortcut
    return peers


def wgrad_peers(x: Tensor, dy: Tensor, window: Conv, vectors: Tensor | None) -> Peers:
    """wgrad from the activation that eager has kept."""
    stored = activation(x, vectors)
    w = torch.empty(dy.shape[1], x.shape[1], window.r, window.s, device=x.device, dtype=x.dtype)
    w = w.contiguous(memory_format=torch.channels_last)
    return {CUDNN: lambda: conv_backward(dy, stored, w, window, weight=True)}


def join_peers(y: Tensor, vectors: Tensor, shortcut: Tensor, shortcut_vectors: Tensor | None) -> Peers:
    """relu(bn(y) + shortcut)."""
    norm = norm_of(y, vectors)
    other = None if shortcut_vectors is None else norm_of(shortcut, shortcut_vectors)

    def passes() -> Tensor:
        z = norm.apply(y)
        z += shortcut if other is None else other.apply(shortcut)
        return z.relu_()

    return {EAGER: passes}


def entry_peers(dz: Tensor, z: Tensor, y: Tensor, vectors: Tensor) -> Peers:
    """dz through the last ReLU, and the sums."""
    norm = norm_of(y, vectors)

    def passes() -> Any:
        g = torch.ops.aten.threshold_backward(dz, z, 0)
        return g, norm.sums(g, y)

    return {EAGER: passes}


def bn_backward_peers(g: Tensor, y: Tensor, vectors: Tensor) -> Peers:
    """The gradient of y."""
    norm = norm_of(y, vectors)
    return {EAGER: lambda: norm.backward(g, y)}


def stem_pool_peers(y: Tensor, vectors: Tensor) -> Peers:
    """maxpool(relu(bn(y))) with the places of the maxima."""
    norm = norm_of(y, vectors)

    def passes() -> Any:
        return F.max_pool2d(norm.apply(y).relu_(), 3, 2, 1, return_indices=True)

    return {EAGER: passes}


def inference_peers(
    x: Tensor, w: Tensor, bias: Tensor, window: Conv, *, relu: bool, residual: Tensor | None
) -> Peers:
    """conv + bias (+ residual) + ReLU: as torch runs it, and as cuDNN's own fusion does."""
    narrow = bias.to(x.dtype)

    def passes() -> Tensor:
        y = conv(x, w, window, narrow)
        if residual is not None:
            y += residual
        return y.relu_() if relu else y

    peers: Peers = {EAGER: passes}
    if x.device.type == "cuda" and relu:
        stride, padding = (window.stride,) * 2, (window.padding,) * 2
        if residual is None:
            peers[FUSED] = lambda: torch.cudnn_convolution_relu(x, w, narrow, stride, padding, (1, 1), 1)
        else:
            peers[FUSED] = lambda: torch.cudnn_convolution_add_relu(
                x, w, residual, 1.0, narrow, stride, padding, (1, 1), 1
            )
    return peers
