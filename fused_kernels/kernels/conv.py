"""Convolution forward (fprop) and its input gradient (dgrad): one kernel, two walks over the taps.

    out[i, n] = EPILOGUE(sum over taps t and depth d of PROLOGUE(x)[pixel(i, t), d] * w[n, t, d])

Rows i are output pixels (fprop) or input pixels of one parity (dgrad); columns and depth are K and C, or C and K.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.gemm import accumulate, tile_of
from fused_kernels.kernels.zero_point import add_zero_sums


@triton.jit
def accumulate_parity(
    acc, x_ptr, w_cols, prologue_args, n, h, w, ok_m, ok_n, H, W, TAP_STRIDE, DEPTH_STRIDE,
    DEPTH: tl.constexpr, PITCH: tl.constexpr, WINDOW: tl.constexpr,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, BASE_H: tl.constexpr, BASE_W: tl.constexpr,
    STEP: tl.constexpr, STRIDE: tl.constexpr, PARITY_H: tl.constexpr, PARITY_W: tl.constexpr,
    PROLOGUE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """acc plus the product of the output's pixels of one parity: they meet every STRIDE-th tap.

    The first of them is met at (h, w) plus a constant; see docs/math/convolution.md.
    """
    FIRST_H: tl.constexpr = (PARITY_H + BASE_H) % STRIDE
    FIRST_W: tl.constexpr = (PARITY_W + BASE_W) % STRIDE
    return accumulate(
        acc, x_ptr, w_cols, prologue_args,
        n, h + (PARITY_H + BASE_H - FIRST_H) // STRIDE, w + (PARITY_W + BASE_W - FIRST_W) // STRIDE,
        ok_m, ok_n, H, W, TAP_STRIDE, DEPTH_STRIDE, DEPTH, PITCH, WINDOW,
        (TAPS_H - FIRST_H + STRIDE - 1) // STRIDE, (TAPS_W - FIRST_W + STRIDE - 1) // STRIDE,
        FIRST_H, FIRST_W, STEP, STRIDE, PROLOGUE, PRECISION, BLOCK_K, FLAT,
    )  # fmt: skip


@triton.jit
def conv_kernel(
    x_ptr, w_ptr, out_ptr, prologue_args, epilogue_args, zero_sums_ptr,
    M, H, W, P, Q, OUT_H, OUT_W, COLS, COL_STRIDE, TAP_STRIDE, DEPTH_STRIDE,
    DEPTH: tl.constexpr, PITCH: tl.constexpr, WINDOW: tl.constexpr,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, BASE_H: tl.constexpr, BASE_W: tl.constexpr,
    IN_STRIDE: tl.constexpr, STEP: tl.constexpr, OUT_STRIDE: tl.constexpr,
    PROLOGUE: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, FLAT: tl.constexpr, LINEAR: tl.constexpr,
):  # fmt: skip
    """x [N, H, W, PITCH], out [N, OUT_H, OUT_W, COLS]; the rows are the M = N*P*Q points of a grid over ``out``.

    ``LINEAR`` says that row i reads pixel i of x alone. ``zero_sums`` is None unless x is int8 and stores its zero as
    another integer. Where OUT_STRIDE is not 1, programs next to each other compute the parities of the output's pixels:
    they read the same input, and write to the same rows of the output.
    """
    pid = tl.program_id(0)
    PARITIES: tl.constexpr = OUT_STRIDE * OUT_STRIDE
    row_tile, col_tile = tile_of(pid // PARITIES, tl.cdiv(M, BLOCK_M), tl.cdiv(COLS, BLOCK_N), GROUP)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    ok_m = rows < M
    ok_n = cols < COLS
    n = rows // (P * Q)
    p = rows // Q % P
    q = rows % Q
    h = p * IN_STRIDE
    w = q * IN_STRIDE
    if LINEAR:  # one long row of pixels: nothing is divided, and nothing lies outside
        n, h, w = rows * 0, rows * 0, rows
        H, W = 1, M
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC)
    if zero_sums_ptr is not None:
        acc = add_zero_sums(acc, zero_sums_ptr, h + BASE_H, w + BASE_W, H, W, ok_m, cols, ok_n, COLS)
    parity = pid % PARITIES
    # a copy of the loop for each: how often it runs has to be a constant
    for one in tl.static_range(PARITIES):
        if parity == one:
            acc = accumulate_parity(
                acc, x_ptr, w_ptr + cols[None, :] * COL_STRIDE, prologue_args,
                n, h, w, ok_m, ok_n, H, W, TAP_STRIDE, DEPTH_STRIDE,
                DEPTH, PITCH, WINDOW, TAPS_H, TAPS_W, BASE_H, BASE_W, STEP, OUT_STRIDE,
                one // OUT_STRIDE, one % OUT_STRIDE, PROLOGUE, PRECISION, BLOCK_K, FLAT,
            )  # fmt: skip
    if OUT_STRIDE == 1:
        pixels = rows.to(tl.int64)
    else:
        out_h = p * OUT_STRIDE + parity // OUT_STRIDE
        out_w = q * OUT_STRIDE + parity % OUT_STRIDE
        ok_m &= (out_h < OUT_H) & (out_w < OUT_W)
        pixels = (n * OUT_H + out_h).to(tl.int64) * OUT_W + out_w
    EPILOGUE(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile * PARITIES + parity, epilogue_args)
