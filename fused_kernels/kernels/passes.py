"""Passes over memory between convolutions; each reads and writes a tensor once. All tensors are [M, C] in NHWC.

activate    z  = relu(bn(y))
join        z  = relu(bn(y) + shortcut)            shortcut: a tensor, or bn(d) of a projection
entry       g  = dz where z > 0                    with the sums that the backward pass of those batch norms needs
bn_backward dy = a * g + b * (y - mean) + c
"""

import triton
import triton.language as tl

from fused_kernels.kernels.epilogues import get, put, put_sum
from fused_kernels.kernels.numerics import (
    batch_norm,
    batch_norm_gradient,
    centred,
    gradient_vectors,
    relu,
    rounded,
)


@triton.jit
def tile_at(M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """Row tile, rows (int64), channels and their masks of this program of a [tiles, C tiles] grid."""
    row_tile = tl.program_id(0)
    rows = row_tile.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    return row_tile, rows, rows < M, c, c < C


@triton.jit
def activate_kernel(y_ptr, vectors_ptr, z_ptr, M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr):
    """z = relu(bn(y)), all [M, C]."""
    _, rows, ok_m, c, ok_c = tile_at(M, C, BLOCK_M, BLOCK_C)
    z = relu(batch_norm(get(y_ptr, rows, ok_m, c, ok_c, C), vectors_ptr, c, ok_c, C))
    put(z, z_ptr, rows, ok_m, c, ok_c, C)


@triton.jit
def join_kernel(
    y_ptr, vectors_ptr, shortcut_ptr, shortcut_vectors_ptr, z_ptr, M, C,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """z = relu(bn(y) + shortcut), the shortcut through its own batch norm if it has vectors."""
    _, rows, ok_m, c, ok_c = tile_at(M, C, BLOCK_M, BLOCK_C)
    main = batch_norm(get(y_ptr, rows, ok_m, c, ok_c, C), vectors_ptr, c, ok_c, C)
    other = get(shortcut_ptr, rows, ok_m, c, ok_c, C)
    if shortcut_vectors_ptr is None:
        z = main + other.to(tl.float32)
    else:
        z = main + batch_norm(other, shortcut_vectors_ptr, c, ok_c, C)
    put(relu(z), z_ptr, rows, ok_m, c, ok_c, C)


@triton.jit
def entry_kernel(
    dz_ptr, z_ptr, y_ptr, vectors_ptr, d_ptr, d_vectors_ptr, g_ptr, partials_ptr, tiles, M, C,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """g = dz where z > 0, and partial sums of g, g * (y - mean) and, for a projection, g * (d - mean_d)."""
    row_tile, rows, ok_m, c, ok_c = tile_at(M, C, BLOCK_M, BLOCK_C)
    dz = get(dz_ptr, rows, ok_m, c, ok_c, C).to(tl.float32)
    z = get(z_ptr, rows, ok_m, c, ok_c, C).to(tl.float32)
    g = rounded(tl.where(z > 0, dz, 0.0), g_ptr.dtype.element_ty)
    put(g, g_ptr, rows, ok_m, c, ok_c, C)
    put_sum(g, ok_m, partials_ptr, 0, tiles, row_tile, c, ok_c, C)
    y = get(y_ptr, rows, ok_m, c, ok_c, C)
    put_sum(g * centred(y, vectors_ptr, c, ok_c), ok_m, partials_ptr, 1, tiles, row_tile, c, ok_c, C)
    if d_ptr is not None:
        d = get(d_ptr, rows, ok_m, c, ok_c, C)
        put_sum(g * centred(d, d_vectors_ptr, c, ok_c), ok_m, partials_ptr, 2, tiles, row_tile, c, ok_c, C)


@triton.jit
def bn_backward_kernel(
    g_ptr, y_ptr, vectors_ptr, coefficients_ptr, dy_ptr, M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """dy, all [M, C]."""
    _, rows, ok_m, c, ok_c = tile_at(M, C, BLOCK_M, BLOCK_C)
    g = get(g_ptr, rows, ok_m, c, ok_c, C)
    y = get(y_ptr, rows, ok_m, c, ok_c, C)
    vectors = gradient_vectors(vectors_ptr, coefficients_ptr, c, ok_c, C)
    put(batch_norm_gradient(g, y, vectors), dy_ptr, rows, ok_m, c, ok_c, C)
