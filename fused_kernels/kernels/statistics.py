"""Batch statistics from the row tiles' partial sums, forward and backward. Derivation: docs/math/batch-norm.md.

Partials are [kinds, tiles, C] in fp32 or fp64. They are added in fp64, in a fixed order, so that the variance keeps
their digits at mean/std = 1000. One program takes BLOCK_C channels and STEPS * BLOCK tiles; thousands of tiles are
first added up in groups, by many programs: ``merge_kernel`` and ``sums_kernel`` make partials of partials.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.wgrad import add_one_up


@triton.jit
def as_fp64(count):
    """A whole number as fp64 [1]; Triton makes an argument of 1 a constant, and constants lack ``to``."""
    return (tl.zeros((1,), dtype=tl.int64) + count).to(tl.float64)


@triton.jit
def column_sum(ptr, first, tiles, c, ok_c, C, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Sum of [tiles, C] over STEPS * BLOCK tiles from ``first`` on, in fp64.

    Each of BLOCK rows adds up its own, and these are added at the end.
    """
    total = tl.zeros((BLOCK, c.shape[0]), dtype=tl.float64)
    for step in range(0, STEPS):
        t = first + step * BLOCK + tl.arange(0, BLOCK)
        ok = (t < tiles)[:, None] & ok_c[None, :]
        total += tl.load(ptr + t[:, None] * C + c[None, :], mask=ok, other=0.0).to(tl.float64)
    return tl.sum(total, axis=0)


@triton.jit
def merged_moments(
    partials_ptr, counts_ptr, first, tiles, count, rows, c, ok_c, C, STEPS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Number, mean and M2 of the rows of STEPS * BLOCK tiles from ``first`` on, in fp64.

    They come from the means and M2 of the tiles (Chan, Golub, LeVeque 1979). A tile stands for ``rows`` rows, the last
    one for the rest of ``count``; or for ``counts[tile]``.
    """
    n = tl.zeros((1,), dtype=tl.float64)
    total = tl.zeros((BLOCK, c.shape[0]), dtype=tl.float64)
    squares = tl.zeros((BLOCK, c.shape[0]), dtype=tl.float64)
    within = tl.zeros((BLOCK, c.shape[0]), dtype=tl.float64)
    for step in range(0, STEPS):
        t = first + step * BLOCK + tl.arange(0, BLOCK)
        ok = (t < tiles)[:, None] & ok_c[None, :]
        at = t[:, None] * C + c[None, :]
        mean = tl.load(partials_ptr + at, mask=ok, other=0.0).to(tl.float64)
        m2 = tl.load(partials_ptr + tiles * C + at, mask=ok, other=0.0).to(tl.float64)
        if counts_ptr is None:
            size = tl.maximum(tl.minimum(count - t * rows, rows), 0).to(tl.float64)
        else:
            size = tl.load(counts_ptr + t, mask=t < tiles, other=0.0)
        n += tl.sum(size, axis=0)
        weighted = size[:, None] * mean
        total += weighted
        squares += weighted * mean
        within += m2
    mean = tl.sum(total, axis=0) / n
    # the sum of squares cancels at large means: fp64 has digits to spare, fp32 has not
    return n, mean, tl.maximum(tl.sum(within, axis=0) + (tl.sum(squares, axis=0) - n * mean * mean), 0.0)


@triton.jit
def merge_kernel(
    partials_ptr, out_ptr, tiles, count, rows, C, STEPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """out fp64 [2, groups, C]: mean and M2 of each group of STEPS * BLOCK tiles; the second grid axis is the group."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    group = tl.program_id(1)
    first = group * STEPS * BLOCK
    _, mean, m2 = merged_moments(partials_ptr, None, first, tiles, count, rows, c, c < C, C, STEPS, BLOCK)
    tl.store(out_ptr + group * C + c, mean, mask=c < C)
    tl.store(out_ptr + (tl.num_programs(1) + group) * C + c, m2, mask=c < C)


@triton.jit
def affine(vectors_ptr, mean, variance, eps, gamma_ptr, beta_ptr, c, C):
    """Write vectors [4, C]: mean, invstd, scale = gamma * invstd, shift = beta - mean * scale."""
    ok_c = c < C
    invstd = 1.0 / tl.sqrt(variance + eps)
    scale = tl.load(gamma_ptr + c, mask=ok_c, other=0.0).to(tl.float64) * invstd
    shift = tl.load(beta_ptr + c, mask=ok_c, other=0.0).to(tl.float64) - mean * scale
    tl.store(vectors_ptr + c, mean.to(tl.float32), mask=ok_c)
    tl.store(vectors_ptr + C + c, invstd.to(tl.float32), mask=ok_c)
    tl.store(vectors_ptr + 2 * C + c, scale.to(tl.float32), mask=ok_c)
    tl.store(vectors_ptr + 3 * C + c, shift.to(tl.float32), mask=ok_c)


@triton.jit
def finalize_layer(layer, c, C, STEPS: tl.constexpr, BLOCK: tl.constexpr):
    """Batch statistics to the vectors of ``affine``, and the running statistics' next values [2, C], as torch's."""
    (partials_ptr, counts_ptr, gamma_ptr, beta_ptr, running_mean_ptr, running_var_ptr, vectors_ptr, new_running_ptr,
     tiles, count, rows, momentum, eps) = layer  # fmt: skip
    n, mean, m2 = merged_moments(partials_ptr, counts_ptr, 0, tiles, count, rows, c, c < C, C, STEPS, BLOCK)
    affine(vectors_ptr, mean, m2 / n, eps, gamma_ptr, beta_ptr, c, C)
    if running_mean_ptr is not None:
        old_mean = tl.load(running_mean_ptr + c, mask=c < C, other=0.0).to(tl.float64)
        old_var = tl.load(running_var_ptr + c, mask=c < C, other=0.0).to(tl.float64)
        unbiased = m2 / tl.maximum(n - 1.0, 1.0)
        new_mean = old_mean + momentum * (mean - old_mean)
        new_var = old_var + momentum * (unbiased - old_var)
        tl.store(new_running_ptr + c, new_mean.to(tl.float32), mask=c < C)
        tl.store(new_running_ptr + C + c, new_var.to(tl.float32), mask=c < C)


@triton.jit
def finalize_kernel(
    layer, other_layer, C, LAYERS: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr
):  # fmt: skip
    """``finalize_layer`` of one layer, or of two with C channels each; the second grid axis is the layer."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    # not ``other_layer is None``: Triton cannot compare a tuple that has a None in it
    if LAYERS == 1:  # noqa: SIM114 - known when the kernel is compiled, unlike the next condition
        finalize_layer(layer, c, C, STEPS, BLOCK)
    elif tl.program_id(1) == 0:
        finalize_layer(layer, c, C, STEPS, BLOCK)
    else:
        finalize_layer(other_layer, c, C, STEPS, BLOCK)


@triton.jit
def frozen_kernel(
    running_mean_ptr, running_var_ptr, gamma_ptr, beta_ptr, vectors_ptr, eps, C, BLOCK_C: tl.constexpr
):
    """The vectors of ``affine`` from running statistics."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = tl.load(running_mean_ptr + c, mask=c < C, other=0.0).to(tl.float64)
    variance = tl.load(running_var_ptr + c, mask=c < C, other=1.0).to(tl.float64)
    affine(vectors_ptr, mean, variance, eps, gamma_ptr, beta_ptr, c, C)


@triton.jit
def sums_kernel(
    partials_ptr, sums_ptr, tiles, C, STEPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr
):
    """sums [kinds, groups, C] of each group of STEPS * BLOCK tiles; the other grid axes are the kind and the group."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    kind = tl.program_id(1).to(tl.int64)
    group = tl.program_id(2)
    total = column_sum(
        partials_ptr + kind * tiles * C, group * STEPS * BLOCK, tiles, c, c < C, C, STEPS, BLOCK
    )
    row = kind * tl.num_programs(2) + group
    tl.store(sums_ptr + row * C + c, total.to(sums_ptr.dtype.element_ty), mask=c < C)


@triton.jit
def layer_gradient(
    layer, partials_ptr, KIND: tl.constexpr, tiles, count, c, C, FROZEN: tl.constexpr, STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of one batch norm, from sum(g), kind 0, and sum(g * (y - mean)), ``KIND``, over ``count`` rows.

    dgamma, dbeta [C], and coefficients [3, C] of dy = a * g + b * (y - mean) + c:
    a = scale; b = -scale * invstd**2 * sum(g * (y - mean)) / count; c = -scale * sum(g) / count. Frozen statistics do
    not depend on y: b = c = 0.
    """
    vectors_ptr, coefficients_ptr, dgamma_ptr, dbeta_ptr = layer
    ok = c < C
    kind = (tl.program_id(0) * 0 + KIND).to(tl.int64)
    sum_g = column_sum(partials_ptr, 0, tiles, c, ok, C, STEPS, BLOCK).to(tl.float32)
    sum_gy = column_sum(partials_ptr + kind * tiles * C, 0, tiles, c, ok, C, STEPS, BLOCK).to(tl.float32)
    invstd = tl.load(vectors_ptr + C + c, mask=ok, other=0.0)
    tl.store(dgamma_ptr + c, sum_gy * invstd, mask=ok)
    tl.store(dbeta_ptr + c, sum_g, mask=ok)
    scale = tl.load(vectors_ptr + 2 * C + c, mask=ok, other=0.0).to(tl.float64)
    b = tl.zeros((c.shape[0],), dtype=tl.float64)
    shift = tl.zeros((c.shape[0],), dtype=tl.float64)
    if not FROZEN:
        n = as_fp64(count)
        b = -scale * invstd.to(tl.float64) * invstd.to(tl.float64) * sum_gy.to(tl.float64) / n
        shift = -scale * sum_g.to(tl.float64) / n
    tl.store(coefficients_ptr + c, scale.to(tl.float32), mask=ok)
    tl.store(coefficients_ptr + C + c, b.to(tl.float32), mask=ok)
    tl.store(coefficients_ptr + 2 * C + c, shift.to(tl.float32), mask=ok)


@triton.jit
def norm_gradients_kernel(
    layer, other_layer, split_sum, other_split_sum, partials_ptr, tiles, count, C,
    FROZEN: tl.constexpr, OTHER_FROZEN: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr, SPLITS: tl.constexpr, OTHER_SPLITS: tl.constexpr, SPLIT_ROWS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
):  # fmt: skip
    """Every small sum that a block's backward pass needs at one point, in one launch.

    The first programs compute ``layer_gradient`` of one batch norm, the next ones that of a projection's on the same g,
    and the others add up the split reductions of one or two gradients of weights.
    """
    pid = tl.program_id(0)
    programs = tl.cdiv(C, BLOCK_C)
    c = pid % programs * BLOCK_C + tl.arange(0, BLOCK_C)
    if pid < programs:
        layer_gradient(layer, partials_ptr, 1, tiles, count, c, C, FROZEN, STEPS, BLOCK)
    elif other_layer is None:
        add_one_up(split_sum, other_split_sum, pid - programs, SPLITS, OTHER_SPLITS, SPLIT_ROWS, SPLIT_BLOCK)
    elif pid < 2 * programs:
        layer_gradient(other_layer, partials_ptr, 2, tiles, count, c, C, OTHER_FROZEN, STEPS, BLOCK)
    else:
        add_one_up(
            split_sum, other_split_sum, pid - 2 * programs, SPLITS, OTHER_SPLITS, SPLIT_ROWS, SPLIT_BLOCK
        )
