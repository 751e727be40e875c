"""The shortcut without parameters of CIFAR networks: every stride-th pixel, with channels of zeros on both sides.

y[n, p, q, c] = x[n, p * stride, q * stride, c - BEFORE], or ZERO where x ends
"""

import triton
import triton.language as tl

from fused_kernels.kernels.epilogues import put
from fused_kernels.kernels.passes import tile_at


@triton.jit
def widen_kernel(
    x_ptr, y_ptr, M, H, W, P, Q, DEPTH, C,
    STRIDE: tl.constexpr, BEFORE: tl.constexpr, ZERO: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """x [N, H, W, DEPTH], y [M, C], M = N*P*Q."""
    _, rows, ok_m, c, ok_c = tile_at(M, C, BLOCK_M, BLOCK_C)
    pixel = (rows // (P * Q) * H + rows // Q % P * STRIDE).to(tl.int64) * W + rows % Q * STRIDE
    source = c - BEFORE
    exists = ok_m[:, None] & ((source >= 0) & (source < DEPTH))[None, :]
    v = tl.load(x_ptr + pixel[:, None] * DEPTH + source[None, :], mask=exists, other=ZERO)
    put(v, y_ptr, rows, ok_m, c, ok_c, C)
