"""Gradient of a weight (wgrad): dw[k, r, s, c] = sum over output pixels m of dy[m, k] * PROLOGUE(x)[pixel(m, r, s), c].

A program takes one tap, one [c, k] tile and one part of the pixels; ``add_up`` adds the parts up in a
fixed order. The prologue recomputes BN + ReLU, so the activated input is never stored. A product of one tap may also
make dy on its way, from the gradient behind the batch norm, and write it for dgrad: nothing then reads it for wgrad.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.numerics import batch_norm_gradient, gradient_vectors, mma, rounds
from fused_kernels.kernels.prologues import load_args


@triton.jit
def next_block(h, w, pixel, end_h, end_w, H, W, P, Q, STRIDE: tl.constexpr, BLOCK_P: tl.constexpr):
    """Places in the input, and pixels there, of the output pixels that are BLOCK_P further on."""
    step_h = BLOCK_P // Q % P * STRIDE
    step_w = BLOCK_P % Q * STRIDE
    step_pixel = (BLOCK_P // (P * Q) * H + step_h) * W + step_w
    w += step_w
    next_row = w >= end_w
    w = tl.where(next_row, w - Q * STRIDE, w)
    h += tl.where(next_row, step_h + STRIDE, step_h)
    next_image = h >= end_h
    h = tl.where(next_image, h - P * STRIDE, h)
    pixel += tl.where(next_row, step_pixel + STRIDE * (W - Q), step_pixel)
    pixel += tl.where(next_image, (H - P * STRIDE) * W, 0)
    return h, w, pixel


@triton.jit
def first_block(
    m, tap, H, W, P, Q, S: tl.constexpr, STRIDE: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr
):  # fmt: skip
    """Places in the input, and pixels there, that output pixels ``m`` meet with ``tap``; and where the places end."""
    p = m // Q % P
    top = tap // S - PADDING_H
    left = tap % S - PADDING_W
    h = p * STRIDE + top
    w = m % Q * STRIDE + left
    return h, w, (m // (P * Q) * H + h) * W + w, P * STRIDE + top, Q * STRIDE + left


@triton.jit
def existing(index, size, SIZE: tl.constexpr, WHOLE: tl.constexpr):
    """Which of SIZE places are below ``size``: with WHOLE all of them, as a constant, so that no load tests one."""
    return tl.full((SIZE,), True, tl.int1) if WHOLE else index < size


@triton.jit
def norm_operands(norm_args, start, k, K, k_tiles):
    """For ``make_dy``: y and dy from element ``start`` on, the vectors of channels ``k``, and who writes dy."""
    y_ptr, vectors_ptr, coefficients_ptr, made_ptr = norm_args
    vectors = gradient_vectors(vectors_ptr, coefficients_ptr, k, k < K, K)
    # a block of one, for Triton 3.9's interpreter takes no mask that is made of a scalar
    writes = tl.zeros((1, 1), tl.int32) + tl.program_id(0) < k_tiles
    return y_ptr + start, made_ptr + start, vectors, writes


@triton.jit
def make_dy(g, y_ptr, dy_ptr, at, ok, vectors, writes):
    """One block of dy from g and from y ``at`` its place, zero where not ``ok``; stored if the program ``writes``."""
    y = tl.load(y_ptr + at, mask=ok, other=0.0)
    dy = tl.where(ok, batch_norm_gradient(g, y, vectors), 0.0).to(dy_ptr.dtype.element_ty)
    tl.store(dy_ptr + at, dy, mask=ok & writes)
    return dy


@triton.jit
def wgrad_kernel(
    x_ptr, dy_ptr, dw_ptr, prologue_args, norm_args,
    M, H, W, P, Q, C, K, PITCH,
    R: tl.constexpr, S: tl.constexpr, STRIDE: tl.constexpr, PADDING_H: tl.constexpr, PADDING_W: tl.constexpr,
    LINEAR: tl.constexpr, STEPS: tl.constexpr, WHOLE: tl.constexpr, PROLOGUE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """x [N, H, W, PITCH], dy [M, K], dw [splits, K, R, S, C] fp32; STEPS blocks of pixels for each split.

    With LINEAR, output pixel m reads input pixel m. Otherwise a pixel's place is carried from block to block: to divide
    its number by Q and P in every block would cost more instructions than everything else. WHOLE says that blocks
    divide M, C and K: only padding is masked then.

    ``norm_args`` = (y, vectors, coefficients, dy) of the batch norm on y, or None; with it, ``dy_ptr`` is g, from which
    dy is computed; the programs of the first columns of x write it. The convolution then has no padding.
    """
    k_tiles = tl.cdiv(K, BLOCK_K)
    c = tl.program_id(0) // k_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.program_id(0) % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    ok_c = existing(c, C, BLOCK_C, WHOLE)[None, :]
    ok_k = existing(k, K, BLOCK_K, WHOLE)[None, :]
    x_args = load_args(prologue_args, c, c < C, C)
    tap = tl.program_id(1)
    split = tl.program_id(2)
    first = split * STEPS * BLOCK_P
    row = tl.arange(0, BLOCK_P)
    dy_ptr += first.to(tl.int64) * K
    dy_at = row[:, None] * K + k[None, :]
    if norm_args is not None:
        y_ptr, made_ptr, vectors, writes = norm_operands(norm_args, first.to(tl.int64) * K, k, K, k_tiles)
    if LINEAR:
        x_ptr += first.to(tl.int64) * PITCH
        x_at = row[:, None] * PITCH + c[None, :]
    else:
        n = first // (P * Q)  # int32 counts pixels from this image on
        x_ptr += (n.to(tl.int64) * H * W) * PITCH
        m = first - n * (P * Q) + row
        h, w, pixel, end_h, end_w = first_block(m, tap, H, W, P, Q, S, STRIDE, PADDING_H, PADDING_W)
    left = M - first
    acc = tl.zeros((BLOCK_C, BLOCK_K), dtype=tl.float32)
    for _ in range(0, rounds(left // BLOCK_P, STEPS) if WHOLE else STEPS):  # the last part may be shorter
        ok_x = existing(row, left, BLOCK_P, WHOLE)
        if LINEAR:
            x = tl.load(x_ptr + x_at, mask=ok_x[:, None] & ok_c, other=0.0)
            x_ptr += BLOCK_P * PITCH
        else:
            if PADDING_H > 0:
                ok_x &= h.to(tl.uint32, bitcast=True) < H  # not negative either
            if PADDING_W > 0:
                ok_x &= w.to(tl.uint32, bitcast=True) < W
            x_at = pixel.to(tl.int64)[:, None] * PITCH + c[None, :]
            x = tl.load(x_ptr + x_at, mask=ok_x[:, None] & ok_c, other=0.0)
            h, w, pixel = next_block(h, w, pixel, end_h, end_w, H, W, P, Q, STRIDE, BLOCK_P)
        # where x is padding dy is loaded as zero, which costs nothing; to mask PROLOGUE(x) costs 64 instructions
        x = PROLOGUE(x, None, x_args)
        ok_dy = ok_x[:, None] & ok_k
        dy = tl.load(dy_ptr + dy_at, mask=ok_dy, other=0.0)
        dy_ptr += BLOCK_P * K
        if norm_args is not None:
            dy = make_dy(dy, y_ptr, made_ptr, dy_at, ok_dy, vectors, writes)
            y_ptr += BLOCK_P * K
            made_ptr += BLOCK_P * K
        left -= BLOCK_P
        acc = mma(tl.trans(x), dy, acc, PRECISION)
    dw_row = split.to(tl.int64) * K + k
    at = (dw_row * (R * S) + tap)[None, :] * C + c[:, None]
    tl.store(dw_ptr + at, acc, mask=existing(c, C, BLOCK_C, WHOLE)[:, None] & ok_k)


@triton.jit
def add_up(split_sum, block, SPLITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """One block of dw = the sum of parts [SPLITS, numel]; ``split_sum`` = (parts, dw, numel).

    ROWS parts are read at a time, for hundreds one after another would each wait for memory. Each of ROWS rows adds up
    its own in order, and these are added at the end.
    """
    parts_ptr, dw_ptr, numel = split_sum
    at = block * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for first in range(0, SPLITS, ROWS):
        split = first + tl.arange(0, ROWS)
        ok = (split < SPLITS)[:, None] & (at < numel)[None, :]
        total += tl.load(parts_ptr + split.to(tl.int64)[:, None] * numel + at[None, :], mask=ok, other=0.0)
    tl.store(dw_ptr + at, tl.sum(total, axis=0), mask=at < numel)


@triton.jit
def add_one_up(
    split_sum, other, block, SPLITS: tl.constexpr, OTHER_SPLITS: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """``add_up`` of one or two sums, whose blocks follow one another; of none if ``split_sum`` is None."""
    if split_sum is not None:
        if other is None:
            add_up(split_sum, block, SPLITS, ROWS, BLOCK)
        else:
            first = tl.cdiv(split_sum[2], BLOCK)
            if block < first:
                add_up(split_sum, block, SPLITS, ROWS, BLOCK)
            else:
                add_up(other, block - first, OTHER_SPLITS, ROWS, BLOCK)


@triton.jit
def split_sum_kernel(split_sum, SPLITS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """``add_up`` alone."""
    add_up(split_sum, tl.program_id(0), SPLITS, ROWS, BLOCK)
