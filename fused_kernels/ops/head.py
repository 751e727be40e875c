"""The end of a network: global average pool and fully connected layer, in one kernel (``kernels/head.py``)."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_kernels import inference_references as references
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.launch import Functor, Out, launch, uses_kernels
from fused_kernels.layout import nhwc
from fused_kernels.numeric_types import require_float
from fused_kernels.ops.inference import float32, require_int32_sums, require_scales, require_vector
from fused_kernels.tiles import Tile

IN_FLIGHT = 8192
"""Bytes of the activation that a program loads at once."""


def pool_fc(x: Tensor, w: Tensor, b: Tensor, *, tile: Tile | None = None) -> Tensor:
    """Logits of the mean over each channel's pixels; the mean is fp32, rounded to the dtype of ``x``, sums are fp32.

    Args:
        x: [N, C, H, W] in fp32, fp16 or bf16 (fp64 runs in plain PyTorch).
        w: [classes, C] in the dtype of ``x``.
        b: fp32 [classes].
        tile: instead of ``head_tile``.

    Returns:
        Logits, fp32 [N, classes].

    Raises:
        ShapeError, Unsupported: operands that do not fit, or a dtype without a kernel.
    """
    require_float(x.dtype, what="pool_fc")
    _require_head(x, w)
    require_vector("b", b, w.shape[0], x)
    if not uses_kernels(x):
        return references.pool_fc(x, w, b)
    return _launched(x, None, w, None, b, tile or head_tile(x.dtype))


def pool_fc_int8(
    x: Tensor, pool_scale: float, w: Tensor, scale: Tensor, b: Tensor, *, tile: Tile | None = None
) -> Tensor:
    """Logits of int8 activations: pooled = int8(sum * pool_scale), ties to even; pooled @ w.T * scale + b in fp32.

    Args:
        x: int8 [N, C, H, W].
        pool_scale: from units of a channel's sum to units of the pooled value; taken as fp32. See ``head_scales``.
        w: int8 [classes, C].
        scale: fp32 [classes], from units of the int32 sums to logits.
        b: fp32 [classes].
        tile: instead of ``head_tile``.

    Returns:
        Logits, fp32 [N, classes].

    Raises:
        ShapeError, Unsupported: operands that do not fit, or sums that int32 may not hold.
    """
    if x.dtype != torch.int8:
        raise Unsupported(f"pool_fc_int8 takes int8, not {str(x.dtype).removeprefix('torch.')}")
    _require_head(x, w)
    require_int32_sums(x, w)
    require_vector("scale", scale, w.shape[0], x)
    require_vector("b", b, w.shape[0], x)
    if not uses_kernels(x):
        return references.pool_fc_int8(x, pool_scale, w, scale, b)
    return _launched(x, float(pool_scale), w, scale, b, tile or head_tile(x.dtype))


def head_scales(s_x: float, pixels: int, s_pool: float, s_w: Tensor) -> tuple[float, Tensor]:
    """``pool_scale`` and ``scale`` of ``pool_fc_int8`` out of quantization scales; fp64, rounded once.

    Args:
        s_x: scale of the activation (real value = scale * int8).
        pixels: H * W.
        s_pool: scale of the pooled values.
        s_w: scales of the weight's rows, [classes].

    Raises:
        Unsupported: a scale that is not a positive, finite number.
    """
    require_scales(s_x=s_x, s_pool=s_pool, s_w=s_w)
    return float32(s_x / (pixels * s_pool)), (s_w.double() * s_pool).float()


def head_tile(dtype: torch.dtype) -> Tile:
    """Images (m), classes (n) and channels (k) of a program.

    Few images and 64 classes, the least that a Hopper tensor core takes: ResNet-50's 1000 classes at batch 128 are 128
    programs, and at batch 1 still 16.
    """
    return Tile(16, 64, 32 if dtype == torch.float32 else 64, warps=4, stages=2)


def _launched(
    x: Tensor, pool_scale: float | None, w: Tensor, scale: Tensor | None, b: Tensor, tile: Tile
) -> Tensor:
    x, w = nhwc(x), w.contiguous()
    n, c, h, width = x.shape
    logits = torch.empty((n, w.shape[0]), dtype=torch.float32, device=x.device)
    pixels_at_once = IN_FLIGHT // (tile.m * tile.k * x.element_size())
    launch(
        "head.pool_fc_kernel",
        (-(-n // tile.m), -(-w.shape[0] // tile.n)),
        tile,
        x_ptr=x,
        pool_scale=pool_scale,
        w_ptr=w,
        scale_ptr=scale,
        b_ptr=b,
        logits_ptr=Out(logits),
        **{"N": n, "CLASSES": w.shape[0], "PIXELS": h * width, "C": c},
        ACC=Functor("numerics.int32" if x.dtype == torch.int8 else "numerics.float32"),
        **{"BLOCK_N": tile.m, "BLOCK_K": tile.n, "BLOCK_C": tile.k},
        BLOCK_P=max(1, min(pixels_at_once, 1 << (h * width - 1).bit_length())),
    )
    return logits


def _require_head(x: Tensor, w: Tensor) -> None:
    if x.ndim != 4 or w.ndim != 2 or x.shape[1] != w.shape[1] or 0 in (*x.shape[1:], *w.shape):
        raise ShapeError(
            f"x {tuple(x.shape)} and w {tuple(w.shape)} do not fit: x is [N, C, H, W] and w [classes, C], none empty"
        )
    if w.dtype != x.dtype:
        raise ShapeError(f"x is {x.dtype} and w is {w.dtype}: convert one of them")
