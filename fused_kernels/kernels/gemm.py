"""The main loop of all products: an implicit matrix product over taps and channel blocks.

    acc[i, n] += sum over taps t and depth d of PROLOGUE(x)[pixel(i, t), d] * w[n, t, d]

Neither operand is copied or rearranged: row i meets tap (a, b) at input pixel (h + a * STEP, w + b * STEP), which is
padding where it falls outside of the plane. ``Gather`` in ``operands/geometry.py`` derives the constants.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.numerics import mma
from fused_kernels.kernels.prologues import load_args


@triton.jit
def tile_of(pid, rows, cols, GROUP: tl.constexpr):
    """Row and column tile of a program; GROUP row tiles share the column tiles while both are in the L2 cache."""
    in_group = GROUP * cols
    first = pid // in_group * GROUP
    height = tl.minimum(rows - first, GROUP)
    return first + pid % in_group % height, pid % in_group // height


@triton.jit
def step(
    acc, x_rows, w_cols, prologue_args, h, w, ok_m, ok_n, H, W, TAP_STRIDE, DEPTH_STRIDE, i, j, d,
    DEPTH: tl.constexpr, PITCH: tl.constexpr, WINDOW: tl.constexpr,
    FIRST_H: tl.constexpr, FIRST_W: tl.constexpr, STEP: tl.constexpr, EVERY: tl.constexpr,
    PROLOGUE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc plus one tap (i, j) and one block of depths ``d``."""
    row = h + i * STEP
    col = w + j * STEP
    # where blocks divide the depth, a constant: the compiler does not see that by itself, and tests every element
    ok_d = tl.full((BLOCK_K,), True, tl.int1) if DEPTH % BLOCK_K == 0 else d < DEPTH
    ok_x = (ok_m & (row >= 0) & (row < H) & (col >= 0) & (col < W))[:, None] & ok_d[None, :]
    x = tl.load(x_rows + ((i * W + j) * STEP * PITCH + d)[None, :], mask=ok_x, other=0.0)
    x = PROLOGUE(x, ok_x, load_args(prologue_args, d, ok_d, DEPTH))
    tap = (FIRST_H + i * EVERY) * WINDOW + FIRST_W + j * EVERY
    ok_w = ok_d[:, None] & ok_n[None, :]
    wt = tl.load(w_cols + tap * TAP_STRIDE + d[:, None] * DEPTH_STRIDE, mask=ok_w, other=0.0)
    return mma(x, wt, acc, PRECISION)


@triton.jit
def accumulate(
    acc, x_ptr, w_cols, prologue_args, n, h, w, ok_m, ok_n, H, W, TAP_STRIDE, DEPTH_STRIDE,
    DEPTH: tl.constexpr, PITCH: tl.constexpr, WINDOW: tl.constexpr,
    TAPS_H: tl.constexpr, TAPS_W: tl.constexpr, FIRST_H: tl.constexpr, FIRST_W: tl.constexpr,
    STEP: tl.constexpr, EVERY: tl.constexpr,
    PROLOGUE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """acc plus the whole product; the first tap of each row meets pixel (n, h, w) of x [N, H, W, PITCH]."""
    # int64: 2**31 elements are a batch of 2,700 at ResNet-50's widest activation
    x_rows = x_ptr + ((n * H + h).to(tl.int64) * W + w)[:, None] * PITCH
    depth = tl.arange(0, BLOCK_K)
    if FLAT:
        BLOCKS: tl.constexpr = (DEPTH + BLOCK_K - 1) // BLOCK_K
        for index in range(0, TAPS_H * TAPS_W * BLOCKS):
            tap = index // BLOCKS
            acc = step(
                acc, x_rows, w_cols, prologue_args, h, w, ok_m, ok_n, H, W, TAP_STRIDE, DEPTH_STRIDE,
                tap // TAPS_W, tap % TAPS_W, index % BLOCKS * BLOCK_K + depth,
                DEPTH, PITCH, WINDOW, FIRST_H, FIRST_W, STEP, EVERY, PROLOGUE, PRECISION, BLOCK_K,
            )  # fmt: skip
    elif DEPTH <= BLOCK_K:
        # one loop over the taps would be the flat one
        for i in range(TAPS_H):
            for j in range(TAPS_W):
                acc = step(
                    acc, x_rows, w_cols, prologue_args, h, w, ok_m, ok_n, H, W, TAP_STRIDE, DEPTH_STRIDE,
                    i, j, depth,
                    DEPTH, PITCH, WINDOW, FIRST_H, FIRST_W, STEP, EVERY, PROLOGUE, PRECISION, BLOCK_K,
                )  # fmt: skip
    else:
        # not unrolled: nine copies of the pipelined loop spill registers and compile five times slower
        for tap in range(TAPS_H * TAPS_W):
            for start in range(0, DEPTH, BLOCK_K):
                acc = step(
                    acc, x_rows, w_cols, prologue_args, h, w, ok_m, ok_n, H, W, TAP_STRIDE, DEPTH_STRIDE,
                    tap // TAPS_W, tap % TAPS_W, start + depth,
                    DEPTH, PITCH, WINDOW, FIRST_H, FIRST_W, STEP, EVERY, PROLOGUE, PRECISION, BLOCK_K,
                )  # fmt: skip
    return acc
