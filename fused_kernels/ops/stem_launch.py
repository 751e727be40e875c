"""The matrix products of a packed image, launched: its convolution, alone or under a max pool, and its wgrad.

``stem_layout`` says how the image is packed; ``kernels/stem.py`` and ``kernels/conv.py`` hold the kernels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from fused_kernels.geometry import Axis, Conv
from fused_kernels.launch import Out, launch
from fused_kernels.numeric_types import precision
from fused_kernels.ops.convolution import compile_time
from fused_kernels.ops.splits import add_up, parts_of, workspace
from fused_kernels.stem_layout import PIXEL, depth, pack_weight
from fused_kernels.tiles import Tile

LONGEST_STRIP = 8
PROGRAMS = 264
"""Two for each of a Hopper's 132 processors."""


def fprop(
    packed: Tensor, w: Tensor, out: Tensor, conv: Conv, tile: Tile, epilogue: str, args: tuple[Any, ...]
) -> None:
    """Launch the convolution of a packed image: R taps in h, one in w."""
    n, height, width, _ = packed.shape
    k, p, q = out.shape[1:]
    launch(
        "conv.conv_kernel",
        (-(-n * p * q // tile.m) * -(-k // tile.n),),
        tile,
        x_ptr=packed,
        w_ptr=pack_weight(w, conv),
        out_ptr=Out(out),
        prologue_args=(),
        epilogue_args=args,
        zero_sums_ptr=None,
        **{"M": n * p * q, "H": height, "W": width, "P": p, "Q": q, "OUT_H": p, "OUT_W": q},
        **{"COLS": k, "COL_STRIDE": conv.r * depth(conv), "TAP_STRIDE": depth(conv), "DEPTH_STRIDE": 1},
        **{"DEPTH": depth(conv), "PITCH": PIXEL, "WINDOW": 1},
        **replace(conv.fprop(), w=Axis(1, 0, 0, 0)).constexprs(),
        **compile_time(packed, tile, "identity", epilogue),
    )


def conv_pool(
    packed: Tensor,
    w: Tensor,
    out: Tensor,
    plane: tuple[int, int],
    conv: Conv,
    tile: Tile,
    epilogue: str,
    args: tuple[Any, ...],
) -> None:
    """Launch convolution and max pool in one; ``plane`` [P, Q] is what the convolution alone would give."""
    n, height, width, _ = packed.shape
    k, p, q = out.shape[1:]
    strip = strip_length(n * p * q, p, k, tile)
    strips = -(-p // strip)
    launch(
        "stem.conv_pool_kernel",
        (-(-n * strips * q // tile.m) * -(-k // tile.n),),
        tile,
        x_ptr=packed,
        w_ptr=pack_weight(w, conv),
        out_ptr=Out(out),
        epilogue_args=args,
        **{"M": n * strips * q, "H": height, "W": width, "P": plane[0], "Q": plane[1]},
        **{"POOLED_H": p, "POOLED_W": q, "STRIPS": strips},
        **{"COLS": k, "COL_STRIDE": conv.r * depth(conv), "TAP_STRIDE": depth(conv)},
        **{"STRIP": strip, "DEPTH": depth(conv), "TAPS": conv.r},
        **{"STRIDE": conv.stride, "PADDING": conv.padding},
        **compile_time(packed, tile, "identity", epilogue),
    )


def wgrad(dw: Tensor, packed: Tensor, dy: Tensor, conv: Conv, tile: Tile) -> None:
    """Launch the product over pixels into ``dw`` [K, R, depth], and the sum of its parts where it is split."""
    n, height, width, _ = packed.shape
    k, p, q = dy.shape[1:]
    steps, splits = parts_of(-(-n * p * q // tile.k), tile.splits)
    parts = workspace(dw, splits)
    launch(
        "stem.stem_wgrad_kernel",
        (-(-conv.r * depth(conv) // tile.m) * -(-k // tile.n), splits),
        tile,
        x_ptr=packed,
        dy_ptr=dy,
        dw_ptr=Out(parts),
        **{"M": n * p * q, "H": height, "W": width, "P": p, "Q": q, "K": k},
        **{"TAPS": conv.r, "DEPTH": depth(conv), "STRIDE": conv.stride, "PADDING": conv.padding},
        **{"STEPS": steps, "PRECISION": precision(packed.dtype)},
        **{"BLOCK_C": tile.m, "BLOCK_K": tile.n, "BLOCK_P": tile.k},
    )
    add_up(parts, dw)


def strip_length(pixels: int, height: int, cols: int, tile: Tile) -> int:
    """Pooled pixels that a row of ``conv_pool_kernel`` walks down: as many as leave work for every processor.

    A power of two, because the loop's length is compiled in.
    """
    programs = -(-pixels // tile.m) * -(-cols // tile.n)
    longest = max(1, min(LONGEST_STRIP, height, programs // PROGRAMS))
    return 1 << (longest.bit_length() - 1)
