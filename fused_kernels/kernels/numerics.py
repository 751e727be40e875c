"""Arithmetic that all kernels share: fp32 in registers, the stored type in memory."""

import os

import triton
import triton.language as tl

# The interpreter computes bf16 on raw bit patterns (triton #11584), so it gets fp32 operands instead.
INTERPRET = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "yes", "on", "y"})

float32 = tl.float32
float16 = tl.float16
int32 = tl.int32

ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it leaves no fraction bits, rounding half to even


@triton.jit
def rounds(n, MOST: tl.constexpr):
    """min(n, MOST) as the end of a loop."""
    n = tl.minimum(n, MOST)
    if INTERPRET:  # it holds numbers as arrays of one element, which NumPy does not take for a loop's end
        return n.handle.data.item()
    else:
        return n


@triton.jit
def relu(v):
    """max(v, 0); a NaN stays a NaN, as in torch."""
    return tl.maximum(v, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def mma(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b with the accumulator's type: fp32, or int32 for int8 operands."""
    if acc.dtype == tl.int32:
        return tl.dot(a, b, acc, out_dtype=tl.int32)
    elif INTERPRET:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def to_int8(v, LOW: tl.constexpr):
    """Round half to even, then saturate to [LOW, 127]."""
    # beyond 2**22 this rounds to coarser numbers than whole ones, but saturation cuts those off anyway
    v = (v + ROUND) - ROUND
    return tl.minimum(tl.maximum(v, LOW), 127.0).to(tl.int8)


@triton.jit
def scale_and_shift(vectors_ptr, channels, channel_ok, C):
    """Two of a batch norm's vectors for ``channels``; ``vectors`` is [4, C]: mean, invstd, scale, shift."""
    scale = tl.load(vectors_ptr + 2 * C + channels, mask=channel_ok, other=0.0)
    shift = tl.load(vectors_ptr + 3 * C + channels, mask=channel_ok, other=0.0)
    return scale, shift


@triton.jit
def normalized(v, scale, shift):
    """v * scale + shift in fp32 for ``v`` [rows, channels]."""
    return v.to(tl.float32) * scale[None, :] + shift[None, :]


@triton.jit
def batch_norm(v, vectors_ptr, channels, channel_ok, C):
    """``normalized`` by the ``scale_and_shift`` of ``channels``."""
    scale, shift = scale_and_shift(vectors_ptr, channels, channel_ok, C)
    return normalized(v, scale, shift)


@triton.jit
def centred(v, vectors_ptr, channels, channel_ok):
    """v - mean in fp32; see ``batch_norm`` for ``vectors``."""
    mean = tl.load(vectors_ptr + channels, mask=channel_ok, other=0.0)
    return v.to(tl.float32) - mean[None, :]


@triton.jit
def gradient_vectors(vectors_ptr, coefficients_ptr, channels, channel_ok, C):
    """Mean, a, b and c of ``channels``, for ``batch_norm_gradient``; ``coefficients`` is [3, C]."""
    mean = tl.load(vectors_ptr + channels, mask=channel_ok, other=0.0)
    a = tl.load(coefficients_ptr + channels, mask=channel_ok, other=0.0)
    b = tl.load(coefficients_ptr + C + channels, mask=channel_ok, other=0.0)
    c = tl.load(coefficients_ptr + 2 * C + channels, mask=channel_ok, other=0.0)
    return mean, a, b, c


@triton.jit
def batch_norm_gradient(g, y, vectors):
    """a * g + (b * (y - mean) + c) in fp32 for ``g`` and ``y`` [rows, channels]: three instructions an element."""
    mean, a, b, c = vectors
    return a[None, :] * g.to(tl.float32) + (b[None, :] * (y.to(tl.float32) - mean[None, :]) + c[None, :])


@triton.jit
def rounded(v, DTYPE: tl.constexpr):
    """``v`` as it will be read back once stored as ``DTYPE``."""
    return v.to(DTYPE).to(tl.float32)
