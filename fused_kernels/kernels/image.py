"""A network's input made ready for its stem in one pass: normalized, quantized and packed (``packed_image``).

    v = image * factor[c] + offset[c]         each step rounded to the type of the layers that are not quantized
    v = v * undo_factor[c] + undo_offset[c]   the same, where the stem reads pixels again; padding is 0 before that
    q = int8(v / scale)                       half to even, saturated, where there is a scale

Compared with a pass for each step this reads the image only once, one byte a pixel where it is uint8.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.numerics import rounded, to_int8


@triton.jit
def scaled(v, factor_ptr, offset_ptr, c, C, REST: tl.constexpr):
    """v * factor + offset by channel, each step rounded to REST."""
    v = rounded(v * tl.load(factor_ptr + c, mask=c < C, other=0.0), REST)
    return rounded(v + tl.load(offset_ptr + c, mask=c < C, other=0.0), REST)


@triton.jit
def take_kernel(
    image_ptr, factor_ptr, offset_ptr, undo_factor_ptr, undo_offset_ptr, scale, out_ptr,
    M, C, H, W, HEIGHT, WIDTH, STRIDE_N, STRIDE_C, STRIDE_H, STRIDE_W,
    REST: tl.constexpr, PADDING: tl.constexpr, MARGIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [M, 4], M = N*HEIGHT*WIDTH: pixel (i, j) is the image's (i - MARGIN, j - PADDING), or padding.

    ``factor`` and ``offset`` are fp32 [C] or both None, and so are ``undo_factor`` and ``undo_offset``; ``scale`` is
    None unless out is int8. REST is a type.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    w = (rows % WIDTH - PADDING)[:, None]
    h = (rows // WIDTH % HEIGHT - MARGIN)[:, None]
    n = (rows // (WIDTH * HEIGHT)).to(tl.int64)[:, None]
    c = tl.arange(0, 4)[None, :]
    ok = (rows < M)[:, None]
    exists = ok & (h >= 0) & (h < H) & (w >= 0) & (w < W) & (c < C)
    v = tl.load(image_ptr + n * STRIDE_N + h * STRIDE_H + w * STRIDE_W + c * STRIDE_C, mask=exists, other=0.0)
    v = rounded(v.to(tl.float32), REST)
    if factor_ptr is not None:
        v = scaled(v, factor_ptr, offset_ptr, c, C, REST)
    v = tl.where(exists, v, 0.0)
    if undo_factor_ptr is not None:
        v = scaled(v, undo_factor_ptr, undo_offset_ptr, c, C, REST)
    if scale is not None:
        # the quotient itself: a product with 1 / scale falls on the other side of some ties
        v = to_int8(tl.div_rn(v, scale + tl.zeros_like(v)), -128.0)
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * 4 + c, v.to(out_ptr.dtype.element_ty), mask=ok)
