"""A network's first layers, on an image packed as ``operands/packed_image.py`` says.

    pack            [N, C, H, W] of any strides -> [N, H, WIDTH, 4]
    pool            z = maxpool3x3/2(relu(bn(y)))                       reads y once, writes z and a byte for each z
    pool_sums       sums of g = dz at the pixel of each maximum, where bn(y) > 0    reads dz and y once
    pool_backward   dy = a * g + b * (y - mean) + c                     reads dz and y again, writes dy; g is not stored
    activate_sums, activate_backward        the same for a stem without max pool: g is dz where bn(y) > 0
    stem_wgrad      dw = sum over output pixels of dy and the packed rows under them
    conv_pool       z = maxpool3x3/2(relu(conv(x) + bias))              the convolution's output stays on the chip;
                                                                        in int8 the ReLU is optional

The pool has padding 1: pixel (p, q) of z covers rows 2p - 1 to 2p + 1 and columns 2q - 1 to 2q + 1 of y.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.epilogues import get, put, put_sum
from fused_kernels.kernels.gemm import accumulate, tile_of
from fused_kernels.kernels.numerics import (
    batch_norm,
    batch_norm_gradient,
    centred,
    gradient_vectors,
    mma,
    relu,
)
from fused_kernels.kernels.passes import tile_at


@triton.jit
def pack_kernel(
    image_ptr, out_ptr, M, C, H, W, WIDTH, STRIDE_N, STRIDE_C, STRIDE_H, STRIDE_W,
    PADDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [M, 4], M = N*H*WIDTH: column j of a row is the image's column j - PADDING, or zero."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    w = (rows % WIDTH - PADDING)[:, None]
    h = (rows // WIDTH % H)[:, None]
    n = (rows // (WIDTH * H)).to(tl.int64)[:, None]
    c = tl.arange(0, 4)[None, :]
    ok = (rows < M)[:, None]
    exists = ok & (w >= 0) & (w < W) & (c < C)
    v = tl.load(image_ptr + n * STRIDE_N + h * STRIDE_H + w * STRIDE_W + c * STRIDE_C, mask=exists, other=0.0)
    v = v.to(tl.float32).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * 4 + c, v, mask=ok)


@triton.jit
def point(rows, H, W):
    """Image, row and column of pixels of [N, H, W], in 32 bits: 64-bit division is many times as slow."""
    at = rows.to(tl.int32)
    return at // (H * W), at // W % H, at % W


@triton.jit
def pool_kernel(
    y_ptr, vectors_ptr, z_ptr, index_ptr, M, P, Q, POOLED_H, POOLED_W, C,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """y [N, P, Q, C]; z and index [M, C], M = N*POOLED_H*POOLED_W. ``index`` is the place, 0 to 8, of the maximum.

    Of equal values the first one wins and a NaN beats everything, as in torch.
    """
    _, rows, ok_m, c, ok_c = tile_at(M, C, BLOCK_M, BLOCK_C)
    n, p, q = point(rows, POOLED_H, POOLED_W)
    h = p * 2 - 1
    w = q * 2 - 1
    best = tl.full((BLOCK_M, BLOCK_C), float("-inf"), tl.float32)
    index = tl.zeros((BLOCK_M, BLOCK_C), tl.int32)
    for i in tl.static_range(3):
        for j in tl.static_range(3):
            inside = ok_m & (h + i >= 0) & (h + i < P) & (w + j >= 0) & (w + j < Q)
            y = get(y_ptr, ((n * P + h + i) * Q + w + j).to(tl.int64), inside, c, ok_c, C)
            v = relu(batch_norm(y, vectors_ptr, c, ok_c, C))
            wins = inside[:, None] & ((v > best) | (v != v))  # noqa: PLR0124 - a NaN
            best = tl.where(wins, v, best)
            index = tl.where(wins, i * 3 + j, index)
    put(best, z_ptr, rows, ok_m, c, ok_c, C)
    put(index, index_ptr, rows, ok_m, c, ok_c, C)


@triton.jit
def from_windows(
    dz_ptr, index_ptr, n, h, w, ok_m, c, ok_c, POOLED_H, POOLED_W, C,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sum of dz over the windows that have their maximum at (n, h, w): at most four, two along an odd coordinate."""
    total = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    for a in tl.static_range(2):
        for b in tl.static_range(2):
            p = h // 2 + a
            q = w // 2 + b
            i = h + 1 - 2 * p  # row of this pixel in the window of p: -1 where it lies above it
            j = w + 1 - 2 * q
            inside = ok_m & (i >= 0) & (j >= 0) & (p < POOLED_H) & (q < POOLED_W)
            window = ((n * POOLED_H + p) * POOLED_W + q).to(tl.int64)
            index = get(index_ptr, window, inside, c, ok_c, C).to(tl.int32)
            dz = get(dz_ptr, window, inside, c, ok_c, C).to(tl.float32)
            total += tl.where(index == (i * 3 + j)[:, None], dz, 0.0)
    return total


@triton.jit
def before_relu(v, y, vectors_ptr, c, ok_c, C):
    """The gradient ``v`` of relu(bn(y)), carried back to bn(y)."""
    return tl.where(batch_norm(y, vectors_ptr, c, ok_c, C) > 0, v, 0.0)


@triton.jit
def put_sums(g, y, vectors_ptr, partials_ptr, tiles, row_tile, ok_m, c, ok_c, C):
    """The tile's sums of g and g * (y - mean)."""
    put_sum(g, ok_m, partials_ptr, 0, tiles, row_tile, c, ok_c, C)
    put_sum(g * centred(y, vectors_ptr, c, ok_c), ok_m, partials_ptr, 1, tiles, row_tile, c, ok_c, C)


@triton.jit
def pool_sums_kernel(
    dz_ptr, index_ptr, y_ptr, vectors_ptr, partials_ptr, tiles, M, P, Q, POOLED_H, POOLED_W, C,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Over M = N*P*Q rows of y: each pixel collects from its windows, so nothing is added to memory twice."""
    row_tile, rows, ok_m, c, ok_c = tile_at(M, C, BLOCK_M, BLOCK_C)
    n, h, w = point(rows, P, Q)
    v = from_windows(dz_ptr, index_ptr, n, h, w, ok_m, c, ok_c, POOLED_H, POOLED_W, C, BLOCK_M, BLOCK_C)
    y = get(y_ptr, rows, ok_m, c, ok_c, C)
    g = before_relu(v, y, vectors_ptr, c, ok_c, C)
    put_sums(g, y, vectors_ptr, partials_ptr, tiles, row_tile, ok_m, c, ok_c, C)


@triton.jit
def pool_backward_kernel(
    dz_ptr, index_ptr, y_ptr, vectors_ptr, coefficients_ptr, dy_ptr, M, P, Q, POOLED_H, POOLED_W, C,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dy [M, C], M = N*P*Q, from the g that ``pool_sums_kernel`` adds up."""
    _, rows, ok_m, c, ok_c = tile_at(M, C, BLOCK_M, BLOCK_C)
    n, h, w = point(rows, P, Q)
    v = from_windows(dz_ptr, index_ptr, n, h, w, ok_m, c, ok_c, POOLED_H, POOLED_W, C, BLOCK_M, BLOCK_C)
    y = get(y_ptr, rows, ok_m, c, ok_c, C)
    g = before_relu(v, y, vectors_ptr, c, ok_c, C)
    vectors = gradient_vectors(vectors_ptr, coefficients_ptr, c, ok_c, C)
    put(batch_norm_gradient(g, y, vectors), dy_ptr, rows, ok_m, c, ok_c, C)


@triton.jit
def activate_sums_kernel(
    dz_ptr, y_ptr, vectors_ptr, partials_ptr, tiles, M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """Sums of g = dz where bn(y) > 0, all [M, C]."""
    row_tile, rows, ok_m, c, ok_c = tile_at(M, C, BLOCK_M, BLOCK_C)
    dz = get(dz_ptr, rows, ok_m, c, ok_c, C).to(tl.float32)
    y = get(y_ptr, rows, ok_m, c, ok_c, C)
    g = before_relu(dz, y, vectors_ptr, c, ok_c, C)
    put_sums(g, y, vectors_ptr, partials_ptr, tiles, row_tile, ok_m, c, ok_c, C)


@triton.jit
def activate_backward_kernel(
    dz_ptr, y_ptr, vectors_ptr, coefficients_ptr, dy_ptr, M, C, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """dy from g = dz where bn(y) > 0, all [M, C]."""
    _, rows, ok_m, c, ok_c = tile_at(M, C, BLOCK_M, BLOCK_C)
    dz = get(dz_ptr, rows, ok_m, c, ok_c, C).to(tl.float32)
    y = get(y_ptr, rows, ok_m, c, ok_c, C)
    g = before_relu(dz, y, vectors_ptr, c, ok_c, C)
    vectors = gradient_vectors(vectors_ptr, coefficients_ptr, c, ok_c, C)
    put(batch_norm_gradient(g, y, vectors), dy_ptr, rows, ok_m, c, ok_c, C)


@triton.jit
def stem_wgrad_kernel(
    x_ptr, dy_ptr, dw_ptr, M, H, W, P, Q, K,
    TAPS: tl.constexpr, DEPTH: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    STEPS: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """x [N, H, W, 4], dy [M, K], dw [splits, K, TAPS, DEPTH] fp32; STEPS blocks of pixels for each split.

    All taps are columns of one product (224 for 7x7), so dy, the larger operand by far, is read once and not per tap.
    """
    k_tiles = tl.cdiv(K, BLOCK_K)
    c = tl.program_id(0) // k_tiles * BLOCK_C + tl.arange(0, BLOCK_C)
    k = tl.program_id(0) % k_tiles * BLOCK_K + tl.arange(0, BLOCK_K)
    split = tl.program_id(1)
    tap = c // DEPTH
    acc = tl.zeros((BLOCK_C, BLOCK_K), dtype=tl.float32)
    for step in range(0, STEPS):
        m = (split * STEPS + step) * BLOCK_P + tl.arange(0, BLOCK_P)
        first = m // Q % P * STRIDE - PADDING
        pixel = (m // (P * Q) * H + first).to(tl.int64) * W + m % Q * STRIDE
        h = first[:, None] + tap[None, :]
        ok_x = (m < M)[:, None] & (h >= 0) & (h < H) & (c < TAPS * DEPTH)[None, :]
        x = tl.load(x_ptr + pixel[:, None] * 4 + (tap * W * 4 + c % DEPTH)[None, :], mask=ok_x, other=0.0)
        ok_dy = (m < M)[:, None] & (k < K)[None, :]
        dy = tl.load(dy_ptr + m.to(tl.int64)[:, None] * K + k[None, :], mask=ok_dy, other=0.0)
        acc = mma(tl.trans(x), dy, acc, PRECISION)
    at = (split.to(tl.int64) * K + k)[None, :] * (TAPS * DEPTH) + c[:, None]
    tl.store(dw_ptr + at, acc, mask=(c < TAPS * DEPTH)[:, None] & (k < K)[None, :])


@triton.jit
def lowest(M: tl.constexpr, N: tl.constexpr, ACC: tl.constexpr):
    """[M, N] filled with the lowest accumulator value."""
    if tl.int32 == ACC:
        return tl.full((M, N), -(2**31), tl.int32)
    else:
        return tl.full((M, N), float("-inf"), tl.float32)


@triton.jit
def larger(a, b):
    """max(a, b), NaN where one of them is."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def conv_pool_kernel(
    x_ptr, w_ptr, out_ptr, epilogue_args, M, H, W, P, Q, POOLED_H, POOLED_W, STRIPS, COLS, COL_STRIDE, TAP_STRIDE,
    STRIP: tl.constexpr, DEPTH: tl.constexpr, TAPS: tl.constexpr, STRIDE: tl.constexpr, PADDING: tl.constexpr,
    PROLOGUE: tl.constexpr, EPILOGUE: tl.constexpr, PRECISION: tl.constexpr, ACC: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    """x [N, H, W, 4], out [N, POOLED_H, POOLED_W, COLS]; the rows are M = N*STRIPS*POOLED_W columns of STRIP pixels.

    Each walks down its column of the convolution's output, three pixels wide, and keeps the maximum of a window's last
    row, which is the next window's first: a pixel computes 6 outputs of the 9 it needs, and a strip 3 more. Bias and
    ReLU come once, after the maximum: both are monotonic, and so is the requantization, because its scale is positive.
    """
    row_tile, col_tile = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(COLS, BLOCK_N), GROUP)
    rows = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    ok_m = rows < M
    ok_n = cols < COLS
    n = rows // (STRIPS * POOLED_W)
    first = rows // POOLED_W % STRIPS * STRIP
    column = rows % POOLED_W
    w_cols = w_ptr + cols[None, :] * COL_STRIDE
    window = lowest(BLOCK_M, BLOCK_N, ACC)
    for i in range(0, 2 * STRIP + 1):
        p = first * 2 - 1 + i
        across = lowest(BLOCK_M, BLOCK_N, ACC)
        for j in range(0, 3):
            q = column * 2 - 1 + j
            inside = ok_m & (p >= 0) & (p < P) & (q >= 0) & (q < Q)
            acc = accumulate(
                tl.zeros((BLOCK_M, BLOCK_N), dtype=ACC), x_ptr, w_cols, (),
                n, p * STRIDE - PADDING, q * STRIDE, inside, ok_n, H, W, TAP_STRIDE, 1,
                DEPTH, 4, 1, TAPS, 1, 0, 0, 1, 1, PROLOGUE, PRECISION, BLOCK_K, FLAT,
            )  # fmt: skip
            across = tl.where(inside[:, None], larger(across, acc), across)
        window = larger(window, across)
        if i % 2 == 0:  # the last row of a window, but for i = 0
            pooled = first + i // 2 - 1
            pixels = (n * POOLED_H + pooled).to(tl.int64) * POOLED_W + column
            ok = ok_m & (pooled >= first) & (pooled < POOLED_H)
            EPILOGUE(window, out_ptr, pixels, ok, cols, ok_n, COLS, row_tile, epilogue_args)
            window = across
