"""The right results of every training operation, by float64 autograd of plain PyTorch and by NumPy.

Nothing here comes from ``fused_kernels``. Each function takes ``dtype``: float64 gives the truth, and any other dtype
gives what eager PyTorch gives in it on a GPU, by rounding wherever eager PyTorch stores a tensor or its gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Window = tuple[int, int]
"""(stride, padding) of a convolution."""


class _Stored(torch.autograd.Function):
    """Rounds to a dtype, and rounds the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype = dtype
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient.to(ctx.dtype).to(gradient.dtype), None


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` and its gradient in float64, both rounded to ``dtype``."""
    rounded: Tensor = _Stored.apply(x.double(), dtype)  # type: ignore[no-untyped-call]
    return rounded


def affine(x: Tensor, vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """x * scale + shift with rows 2 and 3 of ``vectors`` [4, C]."""
    wide = vectors.double()[:, None, :, None, None]
    return stored(x.double() * wide[2] + wide[3], dtype)


def activated(x: Tensor, vectors: Tensor | None, dtype: torch.dtype) -> Tensor:
    """relu(x * scale + shift), or ``x`` if ``vectors`` is None."""
    return x.double() if vectors is None else stored(affine(x, vectors, dtype).relu(), dtype)


def conv(x: Tensor, w: Tensor, window: Window, vectors: Tensor | None, dtype: torch.dtype) -> Tensor:
    """y = conv(relu(bn(x))) or conv(x)."""
    return stored(F.conv2d(activated(x, vectors, dtype), w.double(), None, *window), dtype)


def leaf(x: Tensor) -> Tensor:
    """A float64 copy that collects a gradient."""
    return x.detach().double().requires_grad_()


def gradient_before_relu(
    dy: Tensor, w: Tensor, window: Window, y: Tensor, vectors: Tensor, dtype: torch.dtype
) -> Tensor:
    """Gradient of conv(relu(u)) by u = bn(y)."""
    u = leaf(affine(y, vectors, torch.float64))
    out = F.conv2d(stored(stored(u, dtype).relu(), dtype), w.double(), None, *window)
    return torch.autograd.grad(out, u, dy.double())[0]


def gradient_of_input(
    dy: Tensor, w: Tensor, window: Window, x: Tensor, shortcut: Tensor | None, stride: int, dtype: torch.dtype
) -> Tensor:
    """Gradient by x of a convolution and a shortcut that takes every ``stride``-th pixel."""
    start = leaf(x)
    shared = stored(start, dtype)
    outputs, upstream = [F.conv2d(stored(shared, dtype), w.double(), None, *window)], [dy.double()]
    if shortcut is not None:
        outputs.append(shared[:, :, ::stride, ::stride])
        upstream.append(shortcut.double())
    return torch.autograd.grad(outputs, start, upstream)[0]


def gradient_of_block(
    dy: Tensor, w: Tensor, window: Window, shortcut: Tensor, stride: int, z: Tensor, dtype: torch.dtype
) -> Tensor:
    """``gradient_of_input`` for z = relu(u), by u."""
    u = leaf(torch.where(z > 0, z.double(), z.double() - (torch.arange(z.numel()).reshape(z.shape) % 3)))
    out = stored(u.relu(), dtype)
    grown = [F.conv2d(stored(out, dtype), w.double(), None, *window), out[:, :, ::stride, ::stride]]
    return torch.autograd.grad(grown, u, [dy.double(), shortcut.double()])[0]


def gradient_of_weight(
    x: Tensor, dy: Tensor, size: tuple[int, ...], window: Window, vectors: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Gradient of conv(relu(bn(x)), w) by w of shape ``size``."""
    w = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    out = F.conv2d(activated(x, vectors, dtype), stored(w, dtype), None, *window)
    return torch.autograd.grad(out, w, dy.double())[0]


def join(
    y: Tensor, vectors: Tensor, shortcut: Tensor, shortcut_vectors: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """relu(bn(y) + shortcut), or relu(bn(y) + bn(shortcut))."""
    other = shortcut.double() if shortcut_vectors is None else affine(shortcut, shortcut_vectors, dtype)
    return stored(stored(affine(y, vectors, dtype) + other, dtype).relu(), dtype)


class NormGradients(NamedTuple):
    """Gradients of one batch norm."""

    y: Tensor
    gamma: Tensor
    beta: Tensor


def gradients_of_batch_norm(
    g: Tensor,
    y: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    running: tuple[Tensor, Tensor] | None = None,
) -> NormGradients:
    """Gradients of F.batch_norm from ``g``; of its eval form where ``running`` statistics are given."""
    inputs = [leaf(y), leaf(gamma), leaf(beta)]
    mean, variance = (None, None) if running is None else (running[0].double(), running[1].double())
    out = F.batch_norm(inputs[0], mean, variance, inputs[1], inputs[2], running is None, 0.0, eps)
    return NormGradients(*torch.autograd.grad(out, inputs, g.double()))


def pixels(x: Tensor) -> NDArray[np.float64]:
    """[N, C, H, W] to float64 [N * H * W, C], in the order of NHWC memory."""
    return x.detach().double().permute(0, 2, 3, 1).reshape(-1, x.shape[1]).numpy()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance by channel, by NumPy in float64."""
    rows = pixels(x)
    return torch.from_numpy(rows.mean(0)), torch.from_numpy(rows.var(0))


def tile_moments(x: Tensor, rows: int) -> Tensor:
    """Mean and M2 [2, tiles, C] of each run of ``rows`` pixels; the last run may be shorter."""
    every = pixels(x)
    runs = [every[start : start + rows] for start in range(0, len(every), rows)]
    means = [run.mean(0) for run in runs]
    squares = [((run - mean) ** 2).sum(0) for run, mean in zip(runs, means, strict=True)]
    return torch.from_numpy(np.stack([means, squares]))


def gradient_sums(g: Tensor, *outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sums over pixels of g and of g * (y - mean) for each (y, mean), and the sums of their sizes: twice [kinds, C]."""
    rows = pixels(g)
    products = [rows, *(rows * (pixels(y) - mean.double().numpy()) for y, mean in outputs)]
    return (
        torch.from_numpy(np.stack([product.sum(0) for product in products])),
        torch.from_numpy(np.stack([np.abs(product).sum(0) for product in products])),
    )
