"""The passes between convolutions; kernels in ``kernels/passes.py``, every activation [N, C, H, W] in NHWC memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_kernels.launch import Out, launch, uses_kernels
from fused_kernels.operands.geometry import ceil_div
from fused_kernels.operands.layout import nhwc
from fused_kernels.operands.partials import Partials
from fused_kernels.references import passes as references
from fused_kernels.tiles import Tile

PASS_TILE = Tile(64, 128, warps=4)
"""16 bytes a thread and load in 16 bits, four rows of loads in flight."""


def activate(y: Tensor, vectors: Tensor) -> Tensor:
    """relu(bn(y)) in the shape and dtype of ``y``."""
    if not uses_kernels(y):
        return references.activate(y, vectors)
    y = nhwc(y)
    z = torch.empty_like(y)
    launch_pass("passes.activate_kernel", y, y_ptr=y, vectors_ptr=vectors, z_ptr=Out(z))
    return z


def join(y: Tensor, vectors: Tensor, shortcut: Tensor, shortcut_vectors: Tensor | None = None) -> Tensor:
    """relu(bn(y) + shortcut); a projection's output goes through a batch norm of its own.

    Returns:
        z in the shape and dtype of ``y``.
    """
    if not uses_kernels(y):
        return references.join(y, vectors, shortcut, shortcut_vectors)
    y = nhwc(y)
    z = torch.empty_like(y)
    launch_pass(
        "passes.join_kernel", y,
        y_ptr=y, vectors_ptr=vectors, shortcut_ptr=nhwc(shortcut), shortcut_vectors_ptr=shortcut_vectors, z_ptr=Out(z),
    )  # fmt: skip
    return z


def entry(
    dz: Tensor,
    z: Tensor,
    y: Tensor,
    vectors: Tensor,
    d: Tensor | None = None,
    d_vectors: Tensor | None = None,
) -> tuple[Tensor, Partials]:
    """The start of a block's backward pass: dz through the last ReLU, with the sums for its batch norms.

    Returns:
        g in the shape of ``z``, and partials of kinds (sum g, sum g * (y - mean)[, sum g * (d - mean_d)]).
    """
    if not uses_kernels(z):
        return references.entry(dz, z, y, vectors, d, d_vectors)
    g = torch.empty_like(z)
    partials = Partials.empty(z, 2 if d is None else 3, pass_tile(z.shape[1]).m)
    launch_pass(
        "passes.entry_kernel", z,
        dz_ptr=nhwc(dz), z_ptr=z, y_ptr=y, vectors_ptr=vectors, d_ptr=d, d_vectors_ptr=d_vectors,
        g_ptr=Out(g), partials_ptr=Out(partials.rows), tiles=partials.tiles,
    )  # fmt: skip
    return g, partials


def bn_backward(g: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    """dy = a * g + b * (y - mean) + c; ``coefficients`` [3, C] from ``statistics.coefficients``."""
    if not uses_kernels(g):
        return references.bn_backward(g, y, vectors, coefficients)
    dy = torch.empty_like(g)
    launch_pass(
        "passes.bn_backward_kernel", g,
        g_ptr=g, y_ptr=y, vectors_ptr=vectors, coefficients_ptr=coefficients, dy_ptr=Out(dy),
    )  # fmt: skip
    return dy


def launch_pass(kernel: str, over: Tensor, tile: Tile | None = None, **arguments: Any) -> None:
    """Launch a pass over the rows and channels of ``over`` [N, C, H, W]: programs of [tile.m, tile.n] elements."""
    n, channels, h, w = over.shape
    rows, tile = n * h * w, tile or pass_tile(channels)
    grid = (ceil_div(rows, tile.m), ceil_div(channels, tile.n))
    launch(kernel, grid, tile, **arguments, M=rows, C=channels, BLOCK_M=tile.m, BLOCK_C=tile.n)


def pass_tile(channels: int) -> Tile:
    """A tile of 8,192 elements that wastes no columns on narrow tensors."""
    n = min(PASS_TILE.n, max(16, 1 << (channels - 1).bit_length()))
    return Tile(PASS_TILE.m * PASS_TILE.n // n, n, warps=PASS_TILE.warps)
