"""The end of a network: global average pool (``kernels/head.py``) and fully connected layer, a 1x1 convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_kernels.candidates import fit
from fused_kernels.choice import REFERENCE, Chosen, chosen_for
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.launch import Out, launch
from fused_kernels.operands.geometry import Conv, ceil_div
from fused_kernels.operands.layout import nhwc
from fused_kernels.operands.numeric_types import require_float
from fused_kernels.ops.checks import require_int32_sums, require_same_dtype, require_scales, require_vector
from fused_kernels.ops.inference import float32
from fused_kernels.ops.products import Fused, accumulator, fprop
from fused_kernels.problem import Problem
from fused_kernels.references import head as references
from fused_kernels.tiles import Tile

IN_FLIGHT = 8192
"""Bytes of the activation that a program of the pool loads at once."""
CHANNELS = 64
"""Channels that such a program takes: 128 bytes of a pixel in 16 bits."""
FULLY_CONNECTED = Conv(1, 1)


def pool_fc(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Logits of the mean over each channel's pixels; the mean is fp32, rounded to the dtype of ``x``, sums are fp32.

    Args:
        x: [N, C, H, W] in fp32, fp16 or bf16 (fp64 runs in plain PyTorch).
        w: [classes, C] in the dtype of ``x``.
        b: fp32 [classes].

    Returns:
        Logits, fp32 [N, classes].
    """
    require_float(x.dtype, what="pool_fc")
    _require_head(x, w)
    require_vector("b", b, w.shape[0], x)
    tile = _tile(x, w)
    return references.pool_fc(x, w, b) if tile == REFERENCE else _launch(x, None, w, None, b, tile)


def pool_fc_int8(x: Tensor, pool_scale: float, w: Tensor, scale: Tensor, b: Tensor) -> Tensor:
    """Logits of int8 activations: pooled = int8(sum * pool_scale), ties to even; pooled @ w.T * scale + b in fp32.

    Args:
        x: int8 [N, C, H, W].
        pool_scale: from units of a channel's sum to units of the pooled value; taken as fp32. See ``head_scales``.
        w: int8 [classes, C].
        scale: fp32 [classes], from units of the int32 sums to logits.
        b: fp32 [classes].

    Returns:
        Logits, fp32 [N, classes].
    """
    if x.dtype != torch.int8:
        raise Unsupported(f"pool_fc_int8 takes int8, not {str(x.dtype).removeprefix('torch.')}")
    _require_head(x, w)
    require_int32_sums(x, w)
    require_vector("scale", scale, w.shape[0], x)
    require_vector("b", b, w.shape[0], x)
    tile = _tile(x, w)
    if tile == REFERENCE:
        return references.pool_fc_int8(x, pool_scale, w, scale, b)
    return _launch(x, float(pool_scale), w, scale, b, tile)


def head_scales(s_x: float, pixels: int, s_pool: float, s_w: Tensor) -> tuple[float, Tensor]:
    """``pool_scale`` and ``scale`` of ``pool_fc_int8`` from quantization scales; fp64, rounded once.

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


def _tile(x: Tensor, w: Tensor) -> Chosen:
    n, c = x.shape[:2]
    problem = Problem("fprop", x.dtype, n, 1, 1, c, w.shape[0], FULLY_CONNECTED, "identity", "logits")
    return chosen_for(problem, x)


def _launch(
    x: Tensor, pool_scale: float | None, w: Tensor, scale: Tensor | None, b: Tensor, tile: Tile
) -> Tensor:
    pooled = _pooled(nhwc(x), pool_scale)
    logits = torch.empty((x.shape[0], w.shape[0], 1, 1), dtype=torch.float32, device=x.device)
    weight = w.contiguous()[:, :, None, None]
    fprop(pooled, weight, logits, FULLY_CONNECTED, tile, Fused("logits", (scale, b)), exact=True)
    return logits.flatten(1)


def _pooled(x: Tensor, scale: float | None) -> Tensor:
    """Mean over the pixels of each channel, [N, C, 1, 1] in the dtype of ``x``."""
    n, c, h, width = x.shape
    pooled = torch.empty((n, c, 1, 1), dtype=x.dtype, device=x.device)
    tile = Tile(1, fit(c, CHANNELS))
    pixels_at_once = max(1, IN_FLIGHT // (tile.n * x.element_size()))
    launch(
        "head.pool_kernel", (n, ceil_div(c, tile.n)), tile,
        x_ptr=x, scale=scale, pooled_ptr=Out(pooled), C=c, ACC=accumulator(x.dtype), PIXELS=h * width,
        BLOCK_P=fit(h * width, pixels_at_once, low=1), BLOCK_C=tile.n,
    )  # fmt: skip
    return pooled


def _require_head(x: Tensor, w: Tensor) -> None:
    if x.ndim != 4 or w.ndim != 2 or x.shape[1] != w.shape[1] or 0 in (*x.shape[1:], *w.shape):
        raise ShapeError(
            f"x {tuple(x.shape)} and w {tuple(w.shape)} do not fit: x is [N, C, H, W] and w [classes, C], none empty"
        )
    require_same_dtype(x, w)
