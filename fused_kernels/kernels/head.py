"""Global average pool; the fully connected layer after it is a 1x1 convolution of one pixel, ``kernels/conv.py``.

    pooled[n, c] = mean over pixels of x[n, p, c]           x [N, PIXELS, C]

One kernel for both would pool an image again for each block of classes, 16 times for ImageNet. Storing the pooled
values costs little: they are a fiftieth of what this kernel reads.
"""

import triton
import triton.language as tl

from fused_kernels.kernels.numerics import to_int8


@triton.jit
def pool_kernel(
    x_ptr, scale, pooled_ptr, C,
    ACC: tl.constexpr, PIXELS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """pooled [N, C] in the type of x; ``scale`` is None unless x is int8; then it converts the sum to int8.

    A program takes one image and BLOCK_C channels, and has BLOCK_P pixels in flight.
    """
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    total = tl.zeros((BLOCK_C,), dtype=ACC)
    for start in range(0, PIXELS, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        at = (n * PIXELS + p)[:, None] * C + c[None, :]
        x = tl.load(x_ptr + at, mask=(p < PIXELS)[:, None] & (c < C)[None, :], other=0.0)
        total += tl.sum(x.to(ACC), axis=0)
    if scale is None:
        pooled = (total / PIXELS).to(pooled_ptr.dtype.element_ty)
    else:
        pooled = to_int8(total.to(tl.float32) * scale, -128.0)
    tl.store(pooled_ptr + n * C + c, pooled, mask=c < C)
