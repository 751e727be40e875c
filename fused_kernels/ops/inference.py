"""Convolutions for inference, with batch norm folded into them; every activation is [N, C, H, W] in NHWC memory.

    conv_bias   y = relu(conv(x) + bias + residual)                                fp32, fp16 and bf16
    conv_int8   y = int8((conv(x) + zero_sums) * scale + bias + residual * residual_scale)     int8, sums in int32

``fold`` makes a weight and bias from a convolution and its batch norm, ``requantization`` the vectors of ``conv_int8``
from quantization scales, ``zero_point.zero_sums`` what a zero point adds. The ReLU comes after the residual.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fused_kernels.choice import REFERENCE, chosen_for
from fused_kernels.errors import Unsupported
from fused_kernels.operands.folded import Folded
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.layout import empty_nhwc, nhwc
from fused_kernels.operands.numeric_types import require_float
from fused_kernels.ops.checks import (
    require_convolution,
    require_folded,
    require_residual,
    require_same_dtype,
    require_scales,
)
from fused_kernels.ops.products import Fused, fprop
from fused_kernels.problem import Problem
from fused_kernels.references import inference as references


def conv_bias(
    x: Tensor, w: Tensor, bias: Tensor, conv: Conv, *, relu: bool, residual: Tensor | None = None
) -> Tensor:
    """conv(x) + bias (+ residual) in fp32, through a ReLU if ``relu``, rounded once to the dtype of ``x``.

    Args:
        x: fp32, fp16 or bf16 (fp64 runs in plain PyTorch).
        w: [K, C, R, S] in the dtype of ``x``.
        bias: fp32 [K].
        conv: the window.
        relu: whether a ReLU follows; a residual needs one.
        residual: added before the ReLU, in the shape and dtype of the result.

    Returns:
        y [N, K, P, Q] in the dtype of ``x``.
    """
    require_float(x.dtype, what="conv_bias")
    if residual is not None and not relu:
        raise Unsupported("a residual is added before a ReLU: pass relu=True, or add the residual afterwards")
    return _convolve(x, Folded(w, bias, relu=relu), conv, residual)


def conv_int8(
    x: Tensor,
    w: Tensor,
    scale: Tensor,
    bias: Tensor,
    conv: Conv,
    *,
    relu: bool,
    residual: Tensor | None = None,
    residual_scale: float | None = None,
    zero_sums: Tensor | None = None,
) -> Tensor:
    """v = sums * scale + bias (+ residual * residual_scale), to the nearest int8, ties to even, saturated.

    The sums are conv(x) + ``zero_sums`` in int32; the rest is fp32 in the order in which it is written here.

    Args:
        x: int8.
        w: int8 [K, C, R, S].
        scale: fp32 [K], from units of the int32 sums to units of y; see ``requantization``.
        bias: fp32 [K], in units of y.
        conv: the window.
        relu: saturate to [0, 127] instead of [-128, 127].
        residual: int8 in the shape of the result.
        residual_scale: from units of the residual to units of y; taken as fp32.
        zero_sums: int32 [16, K] of ``zero_point.zero_sums``, where ``x`` stores its zero as another integer; the window
            is 3x3 with padding 1 then.

    Returns:
        y int8 [N, K, P, Q].
    """
    if x.dtype != torch.int8:
        raise Unsupported(f"conv_int8 takes int8, not {str(x.dtype).removeprefix('torch.')}")
    layer = Folded(w, bias, scale, relu=relu, zero_sums=zero_sums)
    return _convolve(x, layer, conv, residual, residual_scale)


def fold(
    w: Tensor, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that equals ``w`` followed by a batch norm in evaluation mode.

    Computed in fp64 and rounded once; cast the weight to 16 bits only after this, never before.

    Args:
        w: [K, C, R, S].
        gamma: the batch norm's weight [K]; None is 1.
        beta: its bias [K]; None is 0.
        mean: its running mean [K].
        var: its running variance [K].
        eps: what it adds to the variance.

    Returns:
        w * gamma / sqrt(var + eps) and beta - mean * gamma / sqrt(var + eps), in fp32 (fp64 where ``w`` is).
    """
    dtype = torch.float64 if w.dtype == torch.float64 else torch.float32
    scale = torch.rsqrt(var.double() + eps)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean.double() * scale
    if beta is not None:
        shift = shift + beta.double()
    return (w.double() * scale[:, None, None, None]).to(dtype), shift.to(dtype)


class Requantization(NamedTuple):
    """Factors and summands of ``conv_int8``, all in units of its result."""

    scale: Tensor
    """fp32 [K]."""
    bias: Tensor
    """fp32 [K]."""
    residual_scale: float | None
    """An fp32 number, or None without a residual."""


def requantization(
    s_x: float, s_w: Tensor, s_out: float, bias: Tensor, s_residual: float | None = None
) -> Requantization:
    """The vectors of ``conv_int8`` from quantization scales (real value = scale * int8); fp64, rounded once.

    Args:
        s_x: scale of the input.
        s_w: scales of the weight's output channels, [K].
        s_out: scale of the result.
        bias: in real units, [K].
        s_residual: scale of the residual, if there is one.

    Raises:
        Unsupported: a scale that is not a positive, finite number.
    """
    require_scales(s_x=s_x, s_w=s_w, s_out=s_out, s_residual=s_residual)
    scale = s_w.double() * s_x / s_out
    residual_scale = None if s_residual is None else float32(s_residual / s_out)
    return Requantization(scale.float(), (bias.double() / s_out).float(), residual_scale)


def float32(value: float) -> float:
    """The fp32 number nearest to ``value``."""
    return float(torch.tensor(value, dtype=torch.float64, device="cpu").float())


def bias_epilogue(
    layer: Folded, residual: Tensor | None = None, residual_scale: float | None = None
) -> Fused:
    """The epilogue that turns a layer's sums into its result."""
    if layer.scale is None:
        if residual is not None:
            return Fused("bias_residual_relu", (layer.bias, nhwc(residual)))
        return Fused("bias_relu" if layer.relu else "bias", (layer.bias,))
    relu, args = "_relu" if layer.relu else "", (layer.scale, layer.bias)
    if residual is None or residual_scale is None:
        return Fused(f"requantize{relu}", args)
    return Fused(f"requantize_residual{relu}", (*args, nhwc(residual), float(residual_scale)))


def _convolve(
    x: Tensor, layer: Folded, conv: Conv, residual: Tensor | None, residual_scale: float | None = None
) -> Tensor:
    require_convolution(x, layer.w, conv)
    require_same_dtype(x, layer.w)
    require_folded(layer, conv, x)
    n, c, height, width = x.shape
    k = layer.w.shape[0]
    shape = (n, k, *conv.output_size(height, width))
    require_residual(residual, residual_scale, x, shape)
    epilogue = bias_epilogue(layer, residual, residual_scale)
    problem = Problem("fprop", x.dtype, n, height, width, c, k, conv, "identity", epilogue.name)
    tile = chosen_for(problem, x)
    if tile == REFERENCE:
        return references.convolve(x, layer, conv, residual, residual_scale)
    y = empty_nhwc(x, *shape)
    fprop(nhwc(x), layer.w, y, conv, tile, epilogue, zero_sums=layer.zero_sums)
    return y
