"""Launches of matrix products: every convolution, input gradient and fully connected layer is one ``conv_kernel``.

``operands.geometry`` says which input pixel meets which tap; the epilogue turns the sums into results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fused_kernels.launch import Functor, Out, launch
from fused_kernels.operands.arguments import Pixels, WeightWalk
from fused_kernels.operands.geometry import Axis, Conv, Gather, ceil_div, rows_of_parity
from fused_kernels.operands.layout import nhwc
from fused_kernels.operands.numeric_types import precision
from fused_kernels.operands.packed_image import PIXEL, depth, pack_weight
from fused_kernels.operands.partials import Partials
from fused_kernels.tiles import Tile


@dataclass(frozen=True)
class Fused:
    """A prologue or epilogue: its name in ``kernels``, and its arguments."""

    name: str
    args: tuple[Any, ...] = ()


IDENTITY = Fused("identity")
STORE = Fused("store")


def bn_relu(vectors: Tensor | None) -> Fused:
    """The prologue relu(bn(.)), or the identity if ``vectors`` is None."""
    return IDENTITY if vectors is None else Fused("bn_relu", (vectors,))


def moments(partials: Partials) -> Fused:
    """The epilogue that stores the result and writes its moments into ``partials``."""
    return Fused("moments", (Out(partials.rows), partials.tiles))


def fprop(
    x: Tensor,
    w: Tensor,
    out: Tensor,
    conv: Conv,
    tile: Tile,
    epilogue: Fused,
    *,
    prologue: Fused = IDENTITY,
    zero_sums: Tensor | None = None,
    exact: bool = False,
) -> None:
    """Launch a convolution of ``x``, which is NHWC in memory, into ``out``.

    ``w`` is [K, C, R, S] in any memory, ``zero_sums`` is explained at ``inference.conv_int8``, and ``exact`` multiplies
    fp32 without TF32.
    """
    n, c = x.shape[:2]
    pixels, k = Pixels.over(n, x.shape[2:], out.shape[2:]), out.shape[1]
    walk = WeightWalk(k, conv.r * conv.s * c, c, depth_stride=1, depth=c, pitch=c, window=conv.s)
    _product(x, nhwc(w), out, pixels, walk, conv.fprop(), tile, epilogue, prologue, zero_sums, exact=exact)


def packed_fprop(packed: Tensor, w: Tensor, out: Tensor, conv: Conv, tile: Tile, epilogue: Fused) -> None:
    """Launch the convolution of a packed image into ``out``: R taps in h, one in w."""
    pixels = Pixels.over(packed.shape[0], packed.shape[1:3], out.shape[2:])
    k, row = out.shape[1], depth(conv)
    walk = WeightWalk(k, conv.r * row, row, depth_stride=1, depth=row, pitch=PIXEL, window=1)
    gather = replace(conv.fprop(), w=Axis(1, 0, 0, 0))
    _product(packed, pack_weight(w, conv), out, pixels, walk, gather, tile, epilogue)


def dgrad(
    dy: Tensor,
    w: Tensor,
    out: Tensor,
    conv: Conv,
    tile: Tile,
    epilogue: Fused,
    partials: Partials | None = None,
) -> None:
    """Launch one product for each parity of ``out``'s pixels, into ``out`` and, where given, into ``partials``."""
    dy, w = nhwc(dy), nhwc(w)
    c, k = out.shape[1], dy.shape[1]
    walk = WeightWalk(c, 1, c, depth_stride=conv.r * conv.s * c, depth=k, pitch=k, window=conv.s)
    first_tile = 0
    for gather in conv.dgrad():
        pixels = _pixels_of_parity(out, dy, conv, gather)
        sums = () if partials is None else (Out(partials.rows), partials.tiles, first_tile)
        with_sums = Fused(epilogue.name, (*epilogue.args, *sums))
        _product(dy, w, out, pixels, walk, gather, tile, with_sums)
        first_tile += ceil_div(pixels.m, tile.m)


def dgrad_partials(kinds: int, out: Tensor, dy: Tensor, conv: Conv, tile: Tile) -> Partials:
    """Unwritten sums for the tiles of ``dgrad``, one parity after another."""
    pixels = [_pixels_of_parity(out, dy, conv, gather).m for gather in conv.dgrad()]
    return Partials.empty(out, kinds, tile.m, tiles=sum(ceil_div(m, tile.m) for m in pixels))


def compiled_for(
    dtype: torch.dtype, tile: Tile, epilogue: Fused, prologue: Fused = IDENTITY, *, exact: bool = False
) -> dict[str, Any]:
    """Constants that a product is compiled for, beside its geometry."""
    return {
        "PROLOGUE": Functor(f"prologues.{prologue.name}"),
        "EPILOGUE": Functor(f"epilogues.{epilogue.name}"),
        "PRECISION": "ieee" if exact else precision(dtype),
        "ACC": accumulator(dtype),
        "BLOCK_M": tile.m,
        "BLOCK_N": tile.n,
        "BLOCK_K": tile.k,
        "GROUP": tile.group,
        "FLAT": tile.flat,
    }


def accumulator(dtype: torch.dtype) -> Functor:
    """The type that products of ``dtype`` add up in."""
    return Functor("numerics.int32" if dtype == torch.int8 else "numerics.float32")


def _pixels_of_parity(out: Tensor, dy: Tensor, conv: Conv, gather: Gather) -> Pixels:
    """The pixels of ``out`` that one gather of ``conv.dgrad()`` computes."""
    n, _, h, w = out.shape
    height = rows_of_parity(h, gather.h.out_base, conv.stride)
    width = rows_of_parity(w, gather.w.out_base, conv.stride)
    return Pixels.over(n, dy.shape[2:], (height, width))


def _product(
    x: Tensor,
    w: Tensor,
    out: Tensor,
    pixels: Pixels,
    walk: WeightWalk,
    gather: Gather,
    tile: Tile,
    epilogue: Fused,
    prologue: Fused = IDENTITY,
    zero_sums: Tensor | None = None,
    *,
    exact: bool = False,
) -> None:
    launch(
        "conv.conv_kernel", (ceil_div(pixels.m, tile.m) * ceil_div(walk.cols, tile.n),), tile,
        x_ptr=x, w_ptr=w, out_ptr=Out(out),
        prologue_args=prologue.args, epilogue_args=epilogue.args, zero_sums_ptr=zero_sums,
        **pixels.named(), OUT_H=out.shape[2], OUT_W=out.shape[3], **walk.named(), **gather.named(),
        **compiled_for(x.dtype, tile, epilogue, prologue, exact=exact),
        LINEAR=gather.pointwise,
    )  # fmt: skip
