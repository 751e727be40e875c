"""Convolutions with their neighbours fused in, for training; every tensor is [N, C, H, W] in NHWC memory.

conv_moments     y = conv(relu(bn(x))) or conv(x)          + mean and M2 of y by channel
conv_plain       y, where the batch norm after it is frozen
dgrad_drelu      g = dgrad(dy) where relu(bn(y)) is open   + sums for that batch norm's backward
dgrad_block      g = (dgrad(dy) + shortcut) where z > 0    + sums for the block before
dgrad_shortcut   dx = dgrad(dy) + shortcut
wgrad            dw = wgrad(relu(bn(x)), dy), recomputing the activation
wgrad_and_dy     dy of a batch norm's gradient too, in the same pass over it

``vectors`` are fp32 [4, C] of one batch norm: mean, invstd, scale, shift.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_kernels.choice import REFERENCE, Chosen, chosen_for
from fused_kernels.launch import Functor, Out, launch
from fused_kernels.operands.arguments import Pixels
from fused_kernels.operands.geometry import Conv, ceil_div
from fused_kernels.operands.layout import empty_nhwc, nhwc
from fused_kernels.operands.numeric_types import precision, require_float
from fused_kernels.operands.partials import Partials
from fused_kernels.ops.checks import require_convolution, require_same_dtype
from fused_kernels.ops.products import STORE, Fused, bn_relu, dgrad, dgrad_partials, fprop, moments
from fused_kernels.ops.splits import SplitSum, add_up, parts_of, workspace
from fused_kernels.problem import Problem
from fused_kernels.references import convolution as references
from fused_kernels.tiles import Tile

MOST_CHANNELS = 1_024
"""Most channels of x for which dy is made on the way to the gradient of a weight (``benchmarks.gpu model``)."""


def conv_moments(x: Tensor, w: Tensor, conv: Conv, vectors: Tensor | None = None) -> tuple[Tensor, Partials]:
    """Convolve ``x`` [N, C, H, W], through relu(bn(.)) where ``vectors`` are given, and collect y's moments.

    Args:
        x: fp32, fp16 or bf16.
        w: [K, C, R, S] in the dtype of ``x``.
        conv: the window.
        vectors: of the batch norm before, or None to take ``x`` as it is.

    Returns:
        y [N, K, P, Q] in the dtype of ``x``, and partials of kinds (mean, M2) of y as stored.
    """
    tile = _fprop_tile(x, w, conv, vectors, "moments")
    if tile == REFERENCE:
        return references.conv_moments(x, w, conv, vectors)
    y = _empty_output(x, w, conv)
    partials = Partials.empty(y, 2, tile.m, moments=True)
    fprop(nhwc(x), w, y, conv, tile, moments(partials), prologue=bn_relu(vectors))
    return y, partials


def conv_plain(x: Tensor, w: Tensor, conv: Conv, vectors: Tensor | None = None) -> Tensor:
    """``conv_moments`` without the moments, for a batch norm whose statistics are constants."""
    tile = _fprop_tile(x, w, conv, vectors, "store")
    if tile == REFERENCE:
        return references.conv_plain(x, w, conv, vectors)
    y = _empty_output(x, w, conv)
    fprop(nhwc(x), w, y, conv, tile, STORE, prologue=bn_relu(vectors))
    return y


def dgrad_drelu(dy: Tensor, w: Tensor, conv: Conv, y: Tensor, vectors: Tensor) -> tuple[Tensor, Partials]:
    """Gradient of conv(relu(bn(y))) by bn(y), from ``dy`` [N, K, P, Q].

    Returns:
        g in the shape of ``y``, and partials of kinds (sum g, sum g * (y - mean)).
    """
    tile = _dgrad_tile(dy, w, conv, y.shape, "drelu")
    if tile == REFERENCE:
        return references.dgrad_drelu(dy, w, conv, y, vectors)
    y = nhwc(y)
    g = torch.empty_like(y)
    partials = dgrad_partials(2, y, dy, conv, tile)
    dgrad(dy, w, g, conv, tile, Fused("drelu", (y, vectors)), partials)
    return g, partials


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
    """Gradient by the sum before the ReLU of z, which is one block's output and the next one's input.

    Args:
        dy: gradient of the next block's first convolution, [N, K, P, Q].
        w: that convolution's weight.
        conv: its window.
        shortcut: gradient that reaches z by the next block's shortcut, at every ``stride``-th pixel.
        stride: of that shortcut.
        z: output of this block, [N, C, H, W].
        y: output of this block's last convolution, in the shape of z.
        vectors: of the batch norm on y.
        d: output of this block's projection, if it has one.
        d_vectors: of the batch norm on d.

    Returns:
        g in the shape of z, and partials of kinds (sum g, sum g * (y - mean)[, sum g * (d - mean_d)]).
    """
    tile = _dgrad_tile(dy, w, conv, z.shape, "block_gradient")
    if tile == REFERENCE:
        return references.dgrad_block(dy, w, conv, shortcut, stride, z, y, vectors, d, d_vectors)
    g = torch.empty_like(z)
    partials = dgrad_partials(2 if d is None else 3, z, dy, conv, tile)
    args = (*_shortcut_args(shortcut, z.shape, stride), z, y, vectors, d, d_vectors)
    dgrad(dy, w, g, conv, tile, Fused("block_gradient", args), partials)
    return g, partials


def dgrad_shortcut(
    dy: Tensor, w: Tensor, conv: Conv, size: Sequence[int], shortcut: Tensor | None, stride: int = 1
) -> Tensor:
    """dgrad(dy) of shape ``size`` [N, C, H, W], plus a shortcut's gradient at every ``stride``-th pixel, if any."""
    epilogue = STORE if shortcut is None else Fused("shortcut", _shortcut_args(shortcut, size, stride))
    tile = _dgrad_tile(dy, w, conv, size, epilogue.name)
    if tile == REFERENCE:
        return references.dgrad_shortcut(dy, w, conv, size, shortcut, stride)
    dx = empty_nhwc(dy, *size)
    dgrad(dy, w, dx, conv, tile, epilogue)
    return dx


def wgrad(
    x: Tensor, dy: Tensor, conv: Conv, vectors: Tensor | None = None, later: list[SplitSum] | None = None
) -> Tensor:
    """Gradient of the weight, fp32 [K, C, R, S] in KRSC memory; ``vectors`` as in ``conv_moments``.

    Where ``later`` is given, a split reduction is noted there instead of being added up: the result is not written
    before that is.
    """
    tile = _wgrad_tile(x, dy, conv, vectors, "store")
    if tile == REFERENCE:
        return references.wgrad(x, dy, conv, vectors)
    return _wgrad(x, dy, conv, vectors, tile, later)


def makes_dy(conv: Conv, channels: int, dtype: torch.dtype) -> bool:
    """Whether ``wgrad_and_dy`` computes the gradient of such a window on ``channels`` channels, and should.

    With many taps or channels many programs would each compute the same dy again, and in fp32 registers do not hold g
    and y beside the operands.
    """
    narrow = dtype in {torch.float16, torch.bfloat16}
    return narrow and conv.r == conv.s == 1 and conv.padding == 0 and channels <= MOST_CHANNELS


def wgrad_and_dy(
    x: Tensor,
    g: Tensor,
    y: Tensor,
    y_vectors: Tensor,
    coefficients: Tensor,
    conv: Conv,
    vectors: Tensor | None = None,
    later: list[SplitSum] | None = None,
) -> tuple[Tensor, Tensor]:
    """``passes.bn_backward`` of g, y, y_vectors and coefficients, and the ``wgrad`` of its result, in one launch.

    The window has one tap and no padding, so that every pixel of g is read.

    Returns:
        dw, as from ``wgrad``, and dy in the shape and dtype of ``g``.
    """
    tile = _wgrad_tile(x, g, conv, vectors, "dy")
    if tile == REFERENCE:
        return references.wgrad_and_dy(x, g, y, y_vectors, coefficients, conv, vectors)
    g = nhwc(g)
    dy = torch.empty_like(g)
    norm_args = nhwc(y), y_vectors, coefficients, Out(dy)
    return _wgrad(x, g, conv, vectors, tile, later, norm_args), dy


def _wgrad(
    x: Tensor,
    dy: Tensor,
    conv: Conv,
    vectors: Tensor | None,
    tile: Tile,
    later: list[SplitSum] | None,
    norm_args: tuple[Any, ...] | None = None,
) -> Tensor:
    """Launch the weight's gradient; ``norm_args`` is explained at the kernel."""
    n, c, h, w = x.shape
    k = dy.shape[1]
    prologue = bn_relu(vectors)
    dw = empty_nhwc(x, k, c, conv.r, conv.s, dtype=torch.float32)
    pixels = Pixels.over(n, (h, w), dy.shape[2:])
    steps, splits = parts_of(ceil_div(pixels.m, tile.k), tile.splits)
    parts = workspace(dw, splits)
    launch(
        "wgrad.wgrad_kernel", (ceil_div(c, tile.m) * ceil_div(k, tile.n), conv.r * conv.s, splits), tile,
        x_ptr=nhwc(x), dy_ptr=nhwc(dy), dw_ptr=Out(parts), prologue_args=prologue.args, norm_args=norm_args,
        **pixels.named(), C=c, K=k, PITCH=c,
        R=conv.r, S=conv.s, STRIDE=conv.stride, PADDING_H=conv.padding, PADDING_W=conv.padding,
        LINEAR=conv.pointwise, STEPS=steps, WHOLE=not (pixels.m % tile.k or c % tile.m or k % tile.n),
        PROLOGUE=Functor(f"prologues.{prologue.name}"), PRECISION=precision(x.dtype),
        BLOCK_C=tile.m, BLOCK_K=tile.n, BLOCK_P=tile.k,
    )  # fmt: skip
    add_up(parts, dw, later)
    return dw


def _shortcut_args(shortcut: Tensor, size: Sequence[int], stride: int) -> tuple[Any, ...]:
    """Gradient, height, width and stride of a shortcut; the kernel takes no sizes where the stride is 1."""
    return (nhwc(shortcut), *((None, None, None) if stride == 1 else (size[2], size[3], stride)))


def _empty_output(x: Tensor, w: Tensor, conv: Conv) -> Tensor:
    n, _, height, width = x.shape
    return empty_nhwc(x, n, w.shape[0], *conv.output_size(height, width))


def _fprop_tile(x: Tensor, w: Tensor, conv: Conv, vectors: Tensor | None, epilogue: str) -> Chosen:
    require_float(x.dtype, what="a fused convolution")
    require_convolution(x, w, conv)
    require_same_dtype(x, w)
    n, c, height, width = x.shape
    prologue = bn_relu(vectors).name
    problem = Problem("fprop", x.dtype, n, height, width, c, w.shape[0], conv, prologue, epilogue)
    return chosen_for(problem, x)


def _wgrad_tile(x: Tensor, dy: Tensor, conv: Conv, vectors: Tensor | None, epilogue: str) -> Chosen:
    n, c, h, w = x.shape
    prologue = bn_relu(vectors).name
    return chosen_for(Problem("wgrad", x.dtype, n, h, w, c, dy.shape[1], conv, prologue, epilogue), x)


def _dgrad_tile(dy: Tensor, w: Tensor, conv: Conv, size: Sequence[int], epilogue: str) -> Chosen:
    n, c, height, width = size
    problem = Problem("dgrad", dy.dtype, n, height, width, c, w.shape[0], conv, "identity", epilogue)
    return chosen_for(problem, dy)
