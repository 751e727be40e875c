"""Global average pool and fully connected layer in one kernel.

    pooled[n, c] = mean over pixels of x[n, p, c]           x [N, PIXELS, C]
    logits[n, k] = sum over c of pooled[n, c] * w[k, c] * scale[k] + b[k]

A program takes BLOCK_N images and BLOCK_K classes and pools a block of channels just before it multiplies them: pooled
values are never stored, and x is read from memory once, then from the L2 cache for further blocks of classes.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.epilogues import affine
from fused_kernels.kernels.numerics import mma, to_int8


@triton.jit
def pixel_sum(
    x_ptr, n, ok_n, c, ok_c, ACC: tl.constexpr, PIXELS: tl.constexpr, C: tl.constexpr, BLOCK_P: tl.constexpr
):  # fmt: skip
    """Sum over pixels, [images, channels] in ``ACC``; several pixels are in flight at a time."""
    rows = x_ptr + n.to(tl.int64)[:, None, None] * (PIXELS * C) + c[None, None, :]
    ok = ok_n[:, None, None] & ok_c[None, None, :]
    total = tl.zeros((n.shape[0], c.shape[0]), dtype=ACC)
    for start in range(0, PIXELS, BLOCK_P):
        p = (start + tl.arange(0, BLOCK_P))[None, :, None]
        total += tl.sum(tl.load(rows + p * C, mask=ok & (p < PIXELS), other=0.0).to(ACC), axis=1)
    return total


@triton.jit
def pool_fc_kernel(
    x_ptr, pool_scale, w_ptr, scale_ptr, b_ptr, logits_ptr, N, CLASSES,
    PIXELS: tl.constexpr, C: tl.constexpr, ACC: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """``pool_scale`` and ``scale_ptr`` are None unless x is int8; w [CLASSES, C], logits [N, CLASSES] fp32."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    ok_n = n < N
    ok_k = k < CLASSES
    # classes by images: a Hopper tensor core takes 64 rows or more
    acc = tl.zeros((BLOCK_K, BLOCK_N), dtype=ACC)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        total = pixel_sum(x_ptr, n, ok_n, c, c < C, ACC, PIXELS, C, BLOCK_P)
        if pool_scale is None:
            pooled = (total / PIXELS).to(x_ptr.dtype.element_ty)
        else:
            pooled = to_int8(total.to(tl.float32) * pool_scale, -128.0)
        w = tl.load(w_ptr + k[:, None] * C + c[None, :], mask=ok_k[:, None] & (c < C)[None, :], other=0.0)
        acc = mma(w, tl.trans(pooled), acc, "ieee")
    logits = affine(tl.trans(acc), scale_ptr, b_ptr, k, ok_k)
    at = n.to(tl.int64)[:, None] * CLASSES + k[None, :]
    tl.store(logits_ptr + at, logits, mask=ok_n[:, None] & ok_k[None, :])
