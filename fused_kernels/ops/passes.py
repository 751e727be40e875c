"""The passes between convolutions; kernels in ``kernels/passes.py``, every activation [N, C, H, W] in NHWC memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_kernels import references
from fused_kernels.launch import Out, launch, uses_kernels
from fused_kernels.layout import nhwc
from fused_kernels.ops.partials import Partials, empty_partials
from fused_kernels.tiles import Tile

PASS_TILE = Tile(64, 128, warps=4)
"""16 bytes a thread and load in 16 bits, four rows of loads in flight."""


def join(y: Tensor, vectors: Tensor, shortcut: Tensor, shortcut_vectors: Tensor | None = None) -> Tensor:
    """relu(bn(y) + shortcut); the shortcut goes through a batch norm of its own where it is a projection's output.

    Returns:
        z in the shape and dtype of ``y``.
    """
    if not uses_kernels(y):
        return references.join(y, vectors, shortcut, shortcut_vectors)
    y, shortcut = nhwc(y), nhwc(shortcut)
    z = torch.empty_like(y)
    launch_pass(
        "passes.join_kernel",
        pass_tile(y.shape[1]),
        y,
        y_ptr=y,
        vectors_ptr=vectors,
        shortcut_ptr=shortcut,
        shortcut_vectors_ptr=shortcut_vectors,
        z_ptr=Out(z),
    )
    return z


def entry(
    dz: Tensor,
    z: Tensor,
    y: Tensor,
    vectors: Tensor,
    d: Tensor | None = None,
    d_vectors: Tensor | None = None,
) -> tuple[Tensor, Partials]:
    """Where a block's backward pass begins: dz through the last ReLU, with the sums for its batch norms.

    Returns:
        g in the shape of ``z``, and partials of kinds (sum g, sum g * (y - mean)[, sum g * (d - mean_d)]).
    """
    if not uses_kernels(z):
        return references.entry(dz, z, y, vectors, d, d_vectors)
    dz = nhwc(dz)
    g = torch.empty_like(z)
    rows, channels = rows_and_channels(z)
    tile = pass_tile(channels)
    partials = empty_partials(z, 2 if d is None else 3, -(-rows // tile.m))
    launch_pass(
        "passes.entry_kernel",
        tile,
        z,
        dz_ptr=dz,
        z_ptr=z,
        y_ptr=y,
        vectors_ptr=vectors,
        d_ptr=d,
        d_vectors_ptr=d_vectors,
        g_ptr=Out(g),
        partials_ptr=Out(partials),
        tiles=partials.shape[1],
    )
    return g, Partials(partials, tile.m, rows)


def bn_backward(g: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    """dy = a * g + b * (y - mean) + c; ``coefficients`` [3, C] from ``statistics.coefficients``."""
    if not uses_kernels(g):
        return references.bn_backward(g, y, vectors, coefficients)
    dy = torch.empty_like(g)
    launch_pass(
        "passes.bn_backward_kernel",
        pass_tile(g.shape[1]),
        g,
        g_ptr=g,
        y_ptr=y,
        vectors_ptr=vectors,
        coefficients_ptr=coefficients,
        dy_ptr=Out(dy),
    )
    return dy


def launch_pass(kernel: str, tile: Tile, over: Tensor, **arguments: Any) -> None:
    """Launch a pass over the rows and channels of ``over`` [N, C, H, W]: programs of [tile.m, tile.n] elements."""
    rows, channels = rows_and_channels(over)
    grid = (-(-rows // tile.m), -(-channels // tile.n))
    sizes = {"M": rows, "C": channels, "BLOCK_M": tile.m, "BLOCK_C": tile.n}
    launch(kernel, grid, tile, **arguments, **sizes)


def rows_and_channels(x: Tensor) -> tuple[int, int]:
    """(N * H * W, C)."""
    n, c, h, w = x.shape
    return n * h * w, c


def pass_tile(channels: int) -> Tile:
    """A tile of 8,192 elements that wastes no columns on narrow tensors."""
    n = min(PASS_TILE.n, max(16, 1 << (channels - 1).bit_length()))
    return Tile(PASS_TILE.m * PASS_TILE.n // n, n, warps=PASS_TILE.warps)
