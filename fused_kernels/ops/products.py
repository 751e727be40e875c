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
from fused_kernels.operands.geometry import Conv, Gather, ceil_div
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
    gather = replace(conv.fprop(), taps_w=1, base_w=0)
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
    """Launch the input gradient into ``out`` and, where given, its sums into ``partials``."""
    dy, w = nhwc(dy), nhwc(w)
    c, k = out.shape[1], dy.shape[1]
    walk = WeightWalk(c, 1, c, depth_stride=conv.r * conv.s * c, depth=k, pitch=k, window=conv.s)
    sums = () if partials is None else (Out(partials.rows), partials.tiles)
    with_sums = Fused(epilogue.name, (*epilogue.args, *sums))
    _product(dy, w, out, _pixels_of_parity(out, dy, conv), walk, conv.dgrad(), tile, with_sums)


def dgrad_partials(kinds: int, out: Tensor, dy: Tensor, conv: Conv, tile: Tile) -> Partials:
    """Unwritten sums for the tiles of ``dgrad``, those of all parities."""
    tiles = conv.dgrad().parities * ceil_div(_pixels_of_parity(out, dy, conv).m, tile.m)
    return Partials.empty(out, kinds, tile.m, tiles=tiles)


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


def _pixels_of_parity(out: Tensor, dy: Tensor, conv: Conv) -> Pixels:
    """The pixels of ``out`` that one product of ``conv.dgrad()`` computes; of some parities the last do not exist."""
    n, _, h, w = out.shape
    return Pixels.over(n, dy.shape[2:], (ceil_div(h, conv.stride), ceil_div(w, conv.stride)))


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
    programs = gather.parities * ceil_div(pixels.m, tile.m) * ceil_div(walk.cols, tile.n)
    launch(
        "conv.conv_kernel", (programs,), tile,
        x_ptr=x, w_ptr=w, out_ptr=Out(out),
        prologue_args=prologue.args, epilogue_args=epilogue.args, zero_sums_ptr=zero_sums,
        **pixels.named(), OUT_H=out.shape[2], OUT_W=out.shape[3], **walk.named(), **gather.named(),
        **compiled_for(x.dtype, tile, epilogue, prologue, exact=exact),
        LINEAR=gather.pointwise and (pixels.h, pixels.w) == (pixels.p, pixels.q),  # a packed image is wider
    )  # fmt: skip
