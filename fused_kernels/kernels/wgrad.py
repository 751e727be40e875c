"""Gradient of a weight (wgrad): dw[k, r, s, c] = sum over output pixels m of dy[m, k] * PROLOGUE(x)[pixel(m, r, s), c].

A program takes one tap, one [c, k] tile and one part of the pixels; ``add_up`` adds the parts up in a
fixed order. The prologue recomputes BN + ReLU, so the activated input is never stored.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.numerics import mma


@triton.jit
def wgrad_kernel(
    x_ptr, dy_ptr, dw_ptr, prologue_args,
    M, H, W, P, Q, C, K, PITCH,
    R: tl.constexpr, S: tl.constexpr, STRIDE: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    STEPS: tl.constexpr, PROLOGUE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """x [N, H, W, PITCH], dy [M, K], dw [splits, K, R, S, C] fp32; STEPS blocks of pixels for each split."""
    k_tiles = tl.cdiv(K, BLOCK_K)
    c = tl.program_id(0) // k_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.program_id(0) % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    tap = tl.program_id(1)
    split = tl.program_id(2)
    r = tap // S
    s = tap % S
    acc = tl.zeros((BLOCK_C, BLOCK_K), dtype=tl.float32)
    for step in range(0, STEPS):
        m = (split * STEPS + step) * BLOCK_P + tl.arange(0, BLOCK_P)
        h = m // Q % P * STRIDE - PADDING_H + r
        w = m % Q * STRIDE - PADDING_W + s
        pixel = (m // (P * Q) * H + h).to(tl.int64) * W + w
        ok_x = ((m < M) & (h >= 0) & (h < H) & (w >= 0) & (w < W))[:, None] & (c < C)[None, :]
        x = tl.load(x_ptr + pixel[:, None] * PITCH + c[None, :], mask=ok_x, other=0.0)
        x = PROLOGUE(x, ok_x, prologue_args, c, c < C, C)
        ok_dy = (m < M)[:, None] & (k < K)[None, :]
        dy = tl.load(dy_ptr + m.to(tl.int64)[:, None] * K + k[None, :], mask=ok_dy, other=0.0)
        acc = mma(tl.trans(x), dy, acc, PRECISION)
    row = split.to(tl.int64) * K + k
    at = (row * (R * S) + tap)[None, :] * C + c[:, None]
    tl.store(dw_ptr + at, acc, mask=(c < C)[:, None] & (k < K)[None, :])


@triton.jit
def add_up(split_sum, block, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """One block of dw = the sum of parts [SPLITS, numel], in order; ``split_sum`` = (parts, dw, numel)."""
    parts_ptr, dw_ptr, numel = split_sum
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(0, SPLITS):
        total += tl.load(parts_ptr + split * numel + at, mask=at < numel, other=0.0)
    tl.store(dw_ptr + at, total, mask=at < numel)


@triton.jit
def add_one_up(
    split_sum, other, block, SPLITS: tl.constexpr, OTHER_SPLITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """``add_up`` of one or two sums, whose blocks follow one another; of none if ``split_sum`` is None."""
    if split_sum is not None:
        if other is None:
            add_up(split_sum, block, SPLITS, BLOCK)
        else:
            first = tl.cdiv(split_sum[2], BLOCK)
            if block < first:
                add_up(split_sum, block, SPLITS, BLOCK)
            else:
                add_up(other, block - first, OTHER_SPLITS, BLOCK)


@triton.jit
def split_sum_kernel(split_sum, SPLITS: tl.constexpr, BLOCK: tl.constexpr):
    """``add_up`` alone."""
    add_up(split_sum, tl.program_id(0), SPLITS, BLOCK)
