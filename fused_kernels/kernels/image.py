"""A network's input as its stem reads it: normalized, quantized and packed as ``stem_layout`` says, in one pass.

    v = image * factor[c] + offset[c]         each step rounded to the type of the layers that are not quantized
    q = int8(v / scale)                       half to even, saturated, where there is a scale

Against a pass for each of them this reads the image once, from pixels of one byte where it comes as such.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.numerics import rounded, to_int8


@triton.jit
def take_kernel(
    image_ptr, factor_ptr, offset_ptr, scale, out_ptr, M, C, H, W, WIDTH, STRIDE_N, STRIDE_C, STRIDE_H, STRIDE_W,
    REST: tl.constexpr, PADDING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out [M, 4], M = N*H*WIDTH: column j of a row is the image's column j - PADDING, or zero.

    ``factor`` and ``offset`` are fp32 [C] or both None; ``scale`` is None unless out is int8. REST is a type.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    w = (rows % WIDTH - PADDING)[:, None]
    h = (rows // WIDTH % H)[:, None]
    n = (rows // (WIDTH * H)).to(tl.int64)[:, None]
    c = tl.arange(0, 4)[None, :]
    ok = (rows < M)[:, None]
    exists = ok & (w >= 0) & (w < W) & (c < C)
    v = tl.load(image_ptr + n * STRIDE_N + h * STRIDE_H + w * STRIDE_W + c * STRIDE_C, mask=exists, other=0.0)
    v = rounded(v.to(tl.float32), REST)
    if factor_ptr is not None:
        v = rounded(v * tl.load(factor_ptr + c, mask=c < C, other=0.0), REST)
        v = rounded(v + tl.load(offset_ptr + c, mask=c < C, other=0.0), REST)
    if scale is not None:
        # the quotient itself: a product with 1 / scale falls on the other side of some ties
        v = to_int8(tl.div_rn(v, scale + tl.zeros_like(v)), -128.0)
    v = tl.where(exists, v, 0.0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows.to(tl.int64)[:, None] * 4 + c, v, mask=ok)
