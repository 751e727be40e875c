"""Convolutions with their neighbours fused in, for training; every tensor is [N, C, H, W] in NHWC memory.

conv_moments     y = conv(relu(bn(x))) or conv(x)          + mean and M2 of y by channel
conv_plain       y, where the batch norm after it is frozen
dgrad_drelu      g = dgrad(dy) where relu(bn(y)) is open   + sums for that batch norm's backward
dgrad_block      g = (dgrad(dy) + shortcut) where z > 0    + sums for the block before
dgrad_shortcut   dx = dgrad(dy) + shortcut
wgrad            dw = wgrad(relu(bn(x)), dy), recomputing the activation
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_kernels import references
from fused_kernels.choice import REFERENCE, chosen_for
from fused_kernels.errors import ShapeError
from fused_kernels.geometry import Conv, rows_of_parity
from fused_kernels.launch import Functor, Out, launch
from fused_kernels.layout import empty_nhwc, nhwc
from fused_kernels.numeric_types import precision, require_float
from fused_kernels.ops.partials import Partials, empty_partials
from fused_kernels.ops.splits import add_up, parts_of, workspace
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

Vectors = Tensor
"""fp32 [4, C] of one batch norm: mean, invstd, scale, shift."""


def conv_moments(x: Tensor, w: Tensor, conv: Conv, vectors: Vectors | None = None) -> tuple[Tensor, Partials]:
    """Convolve ``x`` [N, C, H, W], through relu(bn(.)) where ``vectors`` are given, and collect y's moments.

    Args:
        x: fp32, fp16 or bf16.
        w: [K, C, R, S] in the dtype of ``x``.
        conv: the window.
        vectors: of the batch norm before, or None to take ``x`` as it is.

    Returns:
        y [N, K, P, Q] in the dtype of ``x``, and partials of kinds (mean, M2) of y as stored.

    Raises:
        ShapeError, Unsupported: operands that do not fit, or a dtype without a kernel.
    """
    _check(x, w, conv)
    prologue = "identity" if vectors is None else "bn_relu"
    problem = _fprop_problem(x, w, conv, prologue, "moments")
    tile = chosen_for(problem, x)
    if tile == REFERENCE:
        return references.conv_moments(x, w, conv, vectors)
    x = nhwc(x)
    n, _, h, wd = x.shape
    p, q = conv.output_size(h, wd)
    y = empty_nhwc(x, n, w.shape[0], p, q)
    partials = empty_partials(y, 2, -(-n * p * q // tile.m), moments=True)
    fprop(x, w, y, conv, tile, prologue, _tuple(vectors), "moments", (Out(partials), partials.shape[1]))
    return y, Partials(partials, tile.m, n * p * q)


def conv_plain(x: Tensor, w: Tensor, conv: Conv, vectors: Vectors | None = None) -> Tensor:
    """As ``conv_moments`` without the moments, for a batch norm whose statistics are constants."""
    _check(x, w, conv)
    prologue = "identity" if vectors is None else "bn_relu"
    problem = _fprop_problem(x, w, conv, prologue, "store")
    tile = chosen_for(problem, x)
    if tile == REFERENCE:
        return references.conv_plain(x, w, conv, vectors)
    x = nhwc(x)
    n, _, h, wd = x.shape
    y = empty_nhwc(x, n, w.shape[0], *conv.output_size(h, wd))
    fprop(x, w, y, conv, tile, prologue, _tuple(vectors), "store", ())
    return y


def dgrad_drelu(dy: Tensor, w: Tensor, conv: Conv, y: Tensor, vectors: Vectors) -> tuple[Tensor, Partials]:
    """Gradient of conv(relu(bn(y))) by bn(y), from ``dy`` [N, K, P, Q].

    Returns:
        g in the shape of ``y``, and partials of kinds (sum g, sum g * (y - mean)).
    """
    problem = _dgrad_problem(dy, w, conv, y.shape, "drelu")
    tile = chosen_for(problem, dy)
    if tile == REFERENCE:
        return references.dgrad_drelu(dy, w, conv, y, vectors)
    y = nhwc(y)
    g = torch.empty_like(y)
    partials = empty_partials(y, 2, _dgrad_tiles(y, conv, tile))
    dgrad(dy, w, g, conv, tile, "drelu", (y, vectors, Out(partials), partials.shape[1]))
    return g, Partials(partials, tile.m, y.numel() // y.shape[1])


def dgrad_block(
    dy: Tensor,
    w: Tensor,
    conv: Conv,
    shortcut: Tensor,
    stride: int,
    z: Tensor,
    y: Tensor,
    vectors: Vectors,
    d: Tensor | None = None,
    d_vectors: Vectors | None = None,
) -> tuple[Tensor, Partials]:
    """Gradient of z by what stood before its ReLU, z being both a block's output and the next one's input.

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
    problem = _dgrad_problem(dy, w, conv, z.shape, "block_gradient")
    tile = chosen_for(problem, dy)
    if tile == REFERENCE:
        return references.dgrad_block(dy, w, conv, shortcut, stride, z, y, vectors, d, d_vectors)
    g = torch.empty_like(z)
    partials = empty_partials(z, 2 if d is None else 3, _dgrad_tiles(z, conv, tile))
    args = (
        *_shortcut_args(shortcut, z.shape, stride),
        z,
        y,
        vectors,
        d,
        d_vectors,
        Out(partials),
        partials.shape[1],
    )
    dgrad(dy, w, g, conv, tile, "block_gradient", args)
    return g, Partials(partials, tile.m, z.numel() // z.shape[1])


def dgrad_shortcut(
    dy: Tensor, w: Tensor, conv: Conv, size: Sequence[int], shortcut: Tensor | None, stride: int = 1
) -> Tensor:
    """dgrad(dy) of shape ``size`` [N, C, H, W], plus a shortcut's gradient at every ``stride``-th pixel, if any."""
    epilogue = "store" if shortcut is None else "shortcut"
    problem = _dgrad_problem(dy, w, conv, size, epilogue)
    tile = chosen_for(problem, dy)
    if tile == REFERENCE:
        return references.dgrad_shortcut(dy, w, conv, size, shortcut, stride)
    dx = empty_nhwc(dy, *size)
    dgrad(dy, w, dx, conv, tile, epilogue, () if shortcut is None else _shortcut_args(shortcut, size, stride))
    return dx


def wgrad(x: Tensor, dy: Tensor, conv: Conv, vectors: Vectors | None = None) -> Tensor:
    """Gradient of the weight, fp32 [K, C, R, S] in KRSC memory; ``vectors`` as in ``conv_moments``."""
    k, c = dy.shape[1], x.shape[1]
    prologue = "identity" if vectors is None else "bn_relu"
    n, _, h, w = x.shape
    problem = Problem("wgrad", x.dtype, n, h, w, c, k, conv, prologue, "store")
    tile = chosen_for(problem, x)
    if tile == REFERENCE:
        return references.wgrad(x, dy, conv, vectors)
    x, dy = nhwc(x), nhwc(dy)
    dw = torch.empty(
        (k, c, conv.r, conv.s), dtype=torch.float32, device=x.device, memory_format=torch.channels_last
    )
    wgrad_into(dw, x, dy, conv, (conv.padding, conv.padding), c, tile, prologue, _tuple(vectors))
    return dw


def fprop(
    x: Tensor,
    w: Tensor,
    out: Tensor,
    conv: Conv,
    tile: Tile,
    prologue: str,
    prologue_args: Any,
    epilogue: str,
    epilogue_args: Any,
    zero_sums: Tensor | None = None,
    *,
    exact: bool = False,
) -> None:
    """Launch one fprop into ``out``; ``w`` is [K, C, R, S] in any memory. ``exact`` multiplies fp32 without TF32.

    ``zero_sums`` are those of ``inference.conv_int8``.
    """
    n, c, h, wd = x.shape
    k, p, q = out.shape[1:]
    launch(
        "conv.conv_kernel",
        (-(-n * p * q // tile.m) * -(-k // tile.n),),
        tile,
        x_ptr=x,
        w_ptr=nhwc(w),
        out_ptr=Out(out),
        prologue_args=prologue_args,
        epilogue_args=epilogue_args,
        zero_sums_ptr=zero_sums,
        **{"M": n * p * q, "H": h, "W": wd, "P": p, "Q": q, "OUT_H": p, "OUT_W": q},
        **{"COLS": k, "COL_STRIDE": conv.r * conv.s * c, "TAP_STRIDE": c, "DEPTH_STRIDE": 1},
        **{"DEPTH": c, "PITCH": c, "WINDOW": conv.s},
        **conv.fprop().constexprs(),
        **(compile_time(x, tile, prologue, epilogue) | ({"PRECISION": "ieee"} if exact else {})),
    )


def dgrad(
    dy: Tensor, w: Tensor, out: Tensor, conv: Conv, tile: Tile, epilogue: str, epilogue_args: tuple[Any, ...]
) -> None:
    """Launch one product for each parity of ``out``'s pixels; an epilogue with partials also gets its first tile."""
    dy, w = nhwc(dy), nhwc(w)
    n, c, h, wd = out.shape
    k, p, q = dy.shape[1:]
    first_tile = 0
    for gather in conv.dgrad():
        height = rows_of_parity(h, gather.h.out_base, conv.stride)
        width = rows_of_parity(wd, gather.w.out_base, conv.stride)
        tiles = -(-n * height * width // tile.m)
        launch(
            "conv.conv_kernel",
            (tiles * -(-c // tile.n),),
            tile,
            x_ptr=dy,
            w_ptr=w,
            out_ptr=Out(out),
            prologue_args=(),
            epilogue_args=(*epilogue_args, first_tile) if epilogue in _WITH_PARTIALS else epilogue_args,
            zero_sums_ptr=None,
            **{"M": n * height * width, "H": p, "W": q, "P": height, "Q": width, "OUT_H": h, "OUT_W": wd},
            **{"COLS": c, "COL_STRIDE": 1, "TAP_STRIDE": c, "DEPTH_STRIDE": conv.r * conv.s * c},
            **{"DEPTH": k, "PITCH": k, "WINDOW": conv.s},
            **gather.constexprs(),
            **compile_time(dy, tile, "identity", epilogue),
        )
        first_tile += tiles


def wgrad_into(
    dw: Tensor,
    x: Tensor,
    dy: Tensor,
    conv: Conv,
    padding: tuple[int, int],
    pitch: int,
    tile: Tile,
    prologue: str,
    args: Any,
) -> None:
    """Launch wgrad and, where it is split, the sum of its parts; ``dw`` is [K, C, R, S] fp32 in KRSC memory."""
    n, _, h, w = x.shape
    k, c, r, s = dw.shape
    p, q = dy.shape[2:]
    steps, splits = parts_of(-(-n * p * q // tile.k), tile.splits)
    parts = workspace(dw, splits)
    launch(
        "wgrad.wgrad_kernel",
        (-(-c // tile.m) * -(-k // tile.n), r * s, splits),
        tile,
        x_ptr=x,
        dy_ptr=dy,
        dw_ptr=Out(parts),
        prologue_args=args,
        **{"M": n * p * q, "H": h, "W": w, "P": p, "Q": q, "C": c, "K": k, "PITCH": pitch},
        **{"R": r, "S": s, "STRIDE": conv.stride, "PADDING_H": padding[0], "PADDING_W": padding[1]},
        **{"STEPS": steps, "PROLOGUE": Functor(f"prologues.{prologue}"), "PRECISION": precision(x.dtype)},
        **{"BLOCK_C": tile.m, "BLOCK_K": tile.n, "BLOCK_P": tile.k},
    )
    add_up(parts, dw)


_WITH_PARTIALS = {"drelu", "block_gradient"}


def compile_time(x: Tensor, tile: Tile, prologue: str, epilogue: str) -> dict[str, Any]:
    """What every product is compiled for, beside the geometry."""
    return {
        "PROLOGUE": Functor(f"prologues.{prologue}"),
        "EPILOGUE": Functor(f"epilogues.{epilogue}"),
        "PRECISION": precision(x.dtype),
        "ACC": Functor("numerics.int32" if x.dtype == torch.int8 else "numerics.float32"),
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
        "GROUP": tile.group,
        "FLAT": tile.flat,
    }


def _shortcut_args(shortcut: Tensor, size: Sequence[int], stride: int) -> tuple[Any, ...]:
    if stride == 1:
        return (nhwc(shortcut), None, None, None)
    return (nhwc(shortcut), size[2], size[3], stride)


def _dgrad_tiles(out: Tensor, conv: Conv, tile: Tile) -> int:
    n, _, h, w = out.shape
    return sum(
        -(
            -n
            * rows_of_parity(h, g.h.out_base, conv.stride)
            * rows_of_parity(w, g.w.out_base, conv.stride)
            // tile.m
        )
        for g in conv.dgrad()
    )


def _tuple(vectors: Vectors | None) -> tuple[Tensor, ...]:
    return () if vectors is None else (vectors,)


def _fprop_problem(x: Tensor, w: Tensor, conv: Conv, prologue: str, epilogue: str) -> Problem:
    n, c, h, wd = x.shape
    return Problem("fprop", x.dtype, n, h, wd, c, w.shape[0], conv, prologue, epilogue)


def _dgrad_problem(dy: Tensor, w: Tensor, conv: Conv, size: Sequence[int], epilogue: str) -> Problem:
    n, c, h, wd = size
    return Problem("dgrad", dy.dtype, n, h, wd, c, w.shape[0], conv, "identity", epilogue)


def _check(x: Tensor, w: Tensor, conv: Conv) -> None:
    require_float(x.dtype, what="a fused convolution")
    if x.ndim != 4 or w.ndim != 4 or x.shape[1] != w.shape[1] or w.shape[2:] != (conv.r, conv.s):
        raise ShapeError(
            f"x {tuple(x.shape)} and w {tuple(w.shape)} do not fit a {conv.r}x{conv.s} convolution:"
            " x is [N, C, H, W] and w [K, C, R, S]"
        )
    if w.dtype != x.dtype:
        raise ShapeError(f"x is {x.dtype} and w is {w.dtype}: convert one of them")
