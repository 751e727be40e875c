"""Most of a bottleneck in one kernel, for inference: from one block's 3x3 to the next block's first 1x1.

    h    = relu(conv3x3(x) + b2)                      x [N, H, W, WIDTH], h [pixels, WIDTH]: never leaves the chip
    z    = relu(h @ w3.T + b3 + residual)             z, residual [M, EXPANDED]
    next = relu(z @ w1.T + b1)                        next [M, NEXT], where there is a next block

In int8 each of the three may saturate at -128 instead of its ReLU, and x may store its zero as -128.

A program owns BLOCK_M pixels of every tensor it writes, so nothing is computed twice: the 3x3 reads its halo from
memory, and the 1x1s need none. z is computed in blocks of columns, each stored and at once multiplied into ``next``.
Compared with one kernel for each convolution this saves writing and reading h, and reading z once.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.epilogues import activation, affine, put, with_residual
from fused_kernels.kernels.gemm import accumulate
from fused_kernels.kernels.numerics import mma
from fused_kernels.kernels.zero_point import add_zero_sums


@triton.jit
def weights(w_ptr, cols, ok_n, depth, ok_k, DEPTH: tl.constexpr):
    """[depth, cols] of a 1x1 convolution's weight [COLS, DEPTH], zero outside of it."""
    at = cols[None, :] * DEPTH + depth[:, None]
    return tl.load(w_ptr + at, mask=ok_k[:, None] & ok_n[None, :], other=0.0)


@triton.jit
def chain_kernel(
    x_ptr, w2_ptr, scale2_ptr, b2_ptr, zero_sums_ptr, w3_ptr, scale3_ptr, b3_ptr, residual_ptr, residual_scale, z_ptr,
    w1_ptr, scale1_ptr, b1_ptr, next_ptr, M, H, W, P, Q,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, EXPANDED: tl.constexpr, NEXT: tl.constexpr,
    RELU2: tl.constexpr, RELU3: tl.constexpr, RELU1: tl.constexpr,
    PROLOGUE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_Z: tl.constexpr, BLOCK_NEXT: tl.constexpr, BLOCK_K: tl.constexpr,
    FLAT: tl.constexpr,
):  # fmt: skip
    """Scales and ``residual_scale`` are None unless x is int8; w1, b1 and next are None where no block follows.

    ``zero_sums`` is None unless x stores its zero as another integer.
    """
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    ok_m = rows < M
    c = tl.arange(0, WIDTH)
    ok_c = c < WIDTH
    top = rows // Q % P * STRIDE - 1
    left = rows % Q * STRIDE - 1
    acc = tl.zeros((BLOCK_M, WIDTH), dtype=ACC)
    if zero_sums_ptr is not None:
        acc = add_zero_sums(acc, zero_sums_ptr, top, left, H, W, ok_m, c, ok_c, WIDTH)
    acc = accumulate(
        acc, x_ptr, w2_ptr + c[None, :] * (9 * WIDTH), (),
        rows // (P * Q), top, left, ok_m, ok_c, H, W, WIDTH, 1,
        WIDTH, WIDTH, 3, 3, 3, 0, 0, 1, 1, PROLOGUE, PRECISION, BLOCK_K, FLAT,
    )  # fmt: skip
    h = activation(affine(acc, scale2_ptr, b2_ptr, c, ok_c), DTYPE, RELU2)
    pixels = rows.to(tl.int64)
    m = tl.arange(0, BLOCK_NEXT)
    total = tl.zeros((BLOCK_M, BLOCK_NEXT), dtype=ACC)
    for start in range(0, EXPANDED, BLOCK_Z):
        k = start + tl.arange(0, BLOCK_Z)
        ok_k = k < EXPANDED
        v = mma(
            h, weights(w3_ptr, k, ok_k, c, ok_c, WIDTH), tl.zeros((BLOCK_M, BLOCK_Z), dtype=ACC), PRECISION
        )
        v = affine(v, scale3_ptr, b3_ptr, k, ok_k)
        v = with_residual(v, residual_ptr, residual_scale, pixels, ok_m, k, ok_k, EXPANDED)
        z = activation(v, DTYPE, RELU3)
        put(z, z_ptr, pixels, ok_m, k, ok_k, EXPANDED)
        if next_ptr is not None:
            total = mma(z, weights(w1_ptr, m, m < NEXT, k, ok_k, EXPANDED), total, PRECISION)
    if next_ptr is not None:
        v = activation(affine(total, scale1_ptr, b1_ptr, m, m < NEXT), DTYPE, RELU1)
        put(v, next_ptr, pixels, ok_m, m, m < NEXT, NEXT)
