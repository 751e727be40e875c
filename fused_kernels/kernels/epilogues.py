"""Epilogues: steps from a product's accumulator tile to memory.

An epilogue is called as ``EPILOGUE(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args)``. ``acc`` is
[pixels, cols]; pixel ``i`` of the output starts at ``out_ptr + i * COLS``; ``ok_m`` and ``ok_n`` mark existing rows
and columns.

Partial sums go to ``partials`` [kinds, tiles, COLS], one row for each row tile and no atomics, so the same input gives
the same bits. They are sums of the stored values, because the backward pass reads the stored values too. An epilogue
therefore stores its tile and reads it back before it adds up. What is loaded lies so that a warp holds a few whole
rows, and a sum over rows crosses few threads; the tensor cores' accumulator spreads eight rows over every warp.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.numerics import batch_norm, centred, relu, to_int8


@triton.jit
def put(v, out_ptr, pixels, ok_m, cols, ok_n, COLS):
    """Store ``v`` as the output's type."""
    at = pixels[:, None] * COLS + cols[None, :]
    tl.store(out_ptr + at, v.to(out_ptr.dtype.element_ty), mask=ok_m[:, None] & ok_n[None, :])


@triton.jit
def get(ptr, pixels, ok_m, cols, ok_n, COLS):
    """A tile of another tensor of the output's shape, zero outside of it."""
    at = pixels[:, None] * COLS + cols[None, :]
    return tl.load(ptr + at, mask=ok_m[:, None] & ok_n[None, :], other=0.0)


@triton.jit
def put_all(v, out_ptr, pixels, ok_m, cols, ok_n, COLS):
    """``put``, and wait until the other threads' elements are in memory too."""
    put(v, out_ptr, pixels, ok_m, cols, ok_n, COLS)
    tl.debug_barrier()


@triton.jit
def put_and_get(v, out_ptr, pixels, ok_m, cols, ok_n, COLS):
    """Store ``v`` as the output's type, and return it as stored, in fp32 and zero where nothing is stored."""
    put_all(v, out_ptr, pixels, ok_m, cols, ok_n, COLS)
    return get(out_ptr, pixels, ok_m, cols, ok_n, COLS).to(tl.float32)


@triton.jit
def put_sum(v, ok_m, partials_ptr, kind, tiles, row_tile, cols, ok_n, COLS):
    """Store the column sums of ``v`` over existing rows in row ``row_tile`` of ``partials[kind]``."""
    total = tl.sum(tl.where(ok_m[:, None], v, 0.0), axis=0)
    row = (kind * tiles + row_tile).to(tl.int64)
    tl.store(partials_ptr + row * COLS + cols, total, mask=ok_n)


@triton.jit
def put_sums(g, gy, partials_ptr, tiles, row_tile, cols, ok_n, COLS):
    """Store the column sums of ``g`` and ``gy``, which are zero where no row is, as kinds 0 and 1.

    They add up in one pass: no element of a tile waits in a register for the other sum.
    """
    total, total_y = tl.split(tl.sum(tl.join(g, gy), axis=0))
    at = row_tile.to(tl.int64) * COLS + cols
    tl.store(partials_ptr + at, total, mask=ok_n)
    tl.store(partials_ptr + tiles * COLS + at, total_y, mask=ok_n)


@triton.jit
def part_of(cols, part: tl.constexpr, PARTS: tl.constexpr):
    """One of one or two equal parts of ``cols``, which begin at a multiple of their number."""
    if PARTS == 1:
        return cols
    else:
        size: tl.constexpr = cols.shape[0] // 2
        low, _ = tl.split(tl.trans(tl.reshape(cols, (2, size))))
        first = tl.max_contiguous(tl.multiple_of(low, size), size)  # or loads would be one element wide
        return first + part * size


@triton.jit
def store(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """Store the product unchanged."""
    put(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS)


@triton.jit
def moments(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """Store, and the tile's mean and M2 (sum of squares about that mean) by column; ``args`` = (partials, tiles).

    ``partials`` are fp32 or fp64; the sums over rows are fp32.
    """
    partials_ptr, tiles = args
    v = put_and_get(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS)
    count = tl.sum(ok_m.to(tl.float32), axis=0)
    mean = tl.sum(v, axis=0) / count
    deviation = tl.where(ok_m[:, None], v - mean[None, :], 0.0)
    # at mean/std = 1000 the first sum leaves the mean off by 1e-4 of std, and the spread of tile means would show it
    exact = mean.to(tl.float64) + (tl.sum(deviation, axis=0) / count).to(tl.float64)
    m2 = tl.sum(deviation * deviation, axis=0)
    at = row_tile.to(tl.int64) * COLS + cols
    tl.store(partials_ptr + at, exact.to(partials_ptr.dtype.element_ty), mask=ok_n)
    tl.store(partials_ptr + tiles * COLS + at, m2.to(partials_ptr.dtype.element_ty), mask=ok_n)


@triton.jit
def add_shortcut(acc, pixels, ok_m, cols, ok_n, COLS, shortcut_ptr, height, width, stride):
    """acc + the shortcut's gradient, at every ``stride``-th pixel of [height, width], or at every one if it is None."""
    if stride is None:
        return acc + get(shortcut_ptr, pixels, ok_m, cols, ok_n, COLS).to(tl.float32)
    else:
        w = pixels % width
        h = pixels // width % height
        meets = ok_m & (h % stride == 0) & (w % stride == 0)
        row = pixels // width // height * ((height + stride - 1) // stride) + h // stride
        source = row * ((width + stride - 1) // stride) + w // stride
        return acc + get(shortcut_ptr, source, meets, cols, ok_n, COLS).to(tl.float32)


@triton.jit
def shortcut(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """Gradient of a block's input: main path + shortcut; ``args`` = (shortcut, height, width, stride)."""
    shortcut_ptr, height, width, stride = args
    put(
        add_shortcut(acc, pixels, ok_m, cols, ok_n, COLS, shortcut_ptr, height, width, stride),
        out_ptr, pixels, ok_m, cols, ok_n, COLS,
    )  # fmt: skip


@triton.jit
def drelu(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """g = acc where relu(bn(y)) let y through; sums of g and g * (y - mean).

    ``args`` = (y, vectors, partials, tiles).
    """
    y_ptr, vectors_ptr, partials_ptr, tiles = args
    put_all(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS)
    PARTS: tl.constexpr = 2 if cols.shape[0] >= 128 else 1  # half of many columns take half of the registers
    for part in tl.static_range(PARTS):
        some = part_of(cols, part, PARTS)
        ok = some < COLS
        v = get(out_ptr, pixels, ok_m, some, ok, COLS).to(tl.float32)
        y = get(y_ptr, pixels, ok_m, some, ok, COLS)
        g = tl.where(batch_norm(y, vectors_ptr, some, ok, COLS) > 0, v, 0.0)
        put(g, out_ptr, pixels, ok_m, some, ok, COLS)
        gy = g * centred(y, vectors_ptr, some, ok)
        put_sums(g, gy, partials_ptr, tiles, row_tile, some, ok, COLS)


@triton.jit
def block_gradient(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """The input gradient of one block, through the last ReLU of the block before it.

    g = (acc + shortcut) where z > 0; sums of g, g * (y - mean) and, if that block has a projection, g * (d - mean_d).
    ``args`` = (shortcut, height, width, stride, z, y, vectors, d, vectors_d, partials, tiles);
    d is None where there is no projection.
    """
    (shortcut_ptr, height, width, stride, z_ptr, y_ptr, vectors_ptr, d_ptr, d_vectors_ptr,
     partials_ptr, tiles) = args  # fmt: skip
    v = add_shortcut(acc, pixels, ok_m, cols, ok_n, COLS, shortcut_ptr, height, width, stride)
    put_all(v, out_ptr, pixels, ok_m, cols, ok_n, COLS)
    # d takes registers too, which half of many columns leaves
    PARTS: tl.constexpr = 2 if cols.shape[0] >= 128 and d_ptr is not None else 1
    for part in tl.static_range(PARTS):
        some = part_of(cols, part, PARTS)
        ok = some < COLS
        v = get(out_ptr, pixels, ok_m, some, ok, COLS).to(tl.float32)
        z = get(z_ptr, pixels, ok_m, some, ok, COLS).to(tl.float32)
        g = tl.where(z > 0, v, 0.0)
        put(g, out_ptr, pixels, ok_m, some, ok, COLS)
        y = get(y_ptr, pixels, ok_m, some, ok, COLS)
        put_sums(g, g * centred(y, vectors_ptr, some, ok), partials_ptr, tiles, row_tile, some, ok, COLS)
        if d_ptr is not None:
            d = get(d_ptr, pixels, ok_m, some, ok, COLS)
            gd = g * centred(d, d_vectors_ptr, some, ok)
            put_sum(gd, ok_m, partials_ptr, 2, tiles, row_tile, some, ok, COLS)


@triton.jit
def load_vector(ptr, cols, ok_n):
    """One fp32 number per column, as a row."""
    return tl.load(ptr + cols, mask=ok_n, other=0.0)[None, :]


@triton.jit
def affine(acc, scale_ptr, bias_ptr, cols, ok_n):
    """acc + bias in fp32; of int32 sums, acc * scale + bias. ``scale_ptr`` is None without a scale."""
    if scale_ptr is None:
        return acc + load_vector(bias_ptr, cols, ok_n)
    else:
        return acc.to(tl.float32) * load_vector(scale_ptr, cols, ok_n) + load_vector(bias_ptr, cols, ok_n)


@triton.jit
def with_residual(v, ptr, scale, pixels, ok_m, cols, ok_n, COLS):
    """v + residual, or v + residual * scale where ``scale`` is not None."""
    residual = get(ptr, pixels, ok_m, cols, ok_n, COLS).to(tl.float32)
    if scale is None:
        return v + residual
    else:
        return v + residual * scale


@triton.jit
def activation(v, DTYPE: tl.constexpr, RELU: tl.constexpr = True):
    """relu(v) as ``DTYPE``; as int8 rounded half to even and saturated to [0, 127], or [-128, 127] without ``RELU``."""
    if tl.int8 == DTYPE:
        return to_int8(v, 0.0 if RELU else -128.0)
    else:
        tl.static_assert(RELU, "only int8 replaces the ReLU by saturation")
        return relu(v).to(DTYPE)


@triton.jit
def bias(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """acc + bias; ``args`` = (bias,)."""
    put(affine(acc, None, args[0], cols, ok_n), out_ptr, pixels, ok_m, cols, ok_n, COLS)


@triton.jit
def logits(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """acc + bias, or acc * scale + bias, for fp32 outputs; ``args`` = (scale or None, bias)."""
    put(affine(acc, args[0], args[1], cols, ok_n), out_ptr, pixels, ok_m, cols, ok_n, COLS)


@triton.jit
def bias_relu(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """relu(acc + bias); ``args`` = (bias,)."""
    v = affine(acc, None, args[0], cols, ok_n)
    put(activation(v, out_ptr.dtype.element_ty), out_ptr, pixels, ok_m, cols, ok_n, COLS)


@triton.jit
def bias_residual_relu(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """relu(acc + bias + residual); ``args`` = (bias, residual)."""
    v = affine(acc, None, args[0], cols, ok_n)
    v = with_residual(v, args[1], None, pixels, ok_m, cols, ok_n, COLS)
    put(activation(v, out_ptr.dtype.element_ty), out_ptr, pixels, ok_m, cols, ok_n, COLS)


@triton.jit
def requantize(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """int8(acc * scale + bias), scale and bias in units of the output's scale; ``args`` = (scale, bias)."""
    v = affine(acc, args[0], args[1], cols, ok_n)
    put(to_int8(v, -128.0), out_ptr, pixels, ok_m, cols, ok_n, COLS)


@triton.jit
def requantize_relu(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """``requantize``, saturated to [0, 127]."""
    v = affine(acc, args[0], args[1], cols, ok_n)
    put(activation(v, out_ptr.dtype.element_ty), out_ptr, pixels, ok_m, cols, ok_n, COLS)


@triton.jit
def requantize_residual(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """int8(acc * scale + bias + residual * residual_scale); ``args`` = (scale, bias, residual, residual_scale)."""
    v = affine(acc, args[0], args[1], cols, ok_n)
    v = with_residual(v, args[2], args[3], pixels, ok_m, cols, ok_n, COLS)
    put(to_int8(v, -128.0), out_ptr, pixels, ok_m, cols, ok_n, COLS)


@triton.jit
def requantize_residual_relu(acc, out_ptr, pixels, ok_m, cols, ok_n, COLS, row_tile, args):
    """``requantize_residual``, saturated to [0, 127]."""
    v = affine(acc, args[0], args[1], cols, ok_n)
    v = with_residual(v, args[2], args[3], pixels, ok_m, cols, ok_n, COLS)
    put(activation(v, out_ptr.dtype.element_ty), out_ptr, pixels, ok_m, cols, ok_n, COLS)
