"""Convolutions for inference, with batch norm folded into them; every activation is [N, C, H, W] in NHWC memory.

    conv_bias   y = relu(conv(x) + bias + residual)                                fp32, fp16 and bf16
    conv_int8   y = int8((conv(x) + zero_sums) * scale + bias + residual * residual_scale)     int8, sums in int32

``fold`` makes weights and biases out of a convolution and its batch norm, ``requantization`` the vectors of
``conv_int8`` out of quantization scales, ``zero_point.zero_sums`` what a zero point adds. A residual is added before
the ReLU, or in int8 before saturation at -128.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_kernels import inference_references as references
from fused_kernels.choice import REFERENCE, chosen_for
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.geometry import Conv
from fused_kernels.layout import empty_nhwc, nhwc
from fused_kernels.numeric_types import require_float
from fused_kernels.ops.convolution import fprop
from fused_kernels.problem import Problem
from fused_kernels.zero_point import COMBINATIONS, has_zero_sums

INT32_PRODUCTS = 2**31 // 128**2
"""So many products of two int8 may add up to 2**31, which int32 does not hold."""


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
        residual: what is added before the ReLU, in the shape and dtype of the result.

    Returns:
        y [N, K, P, Q] in the dtype of ``x``.

    Raises:
        ShapeError, Unsupported: operands that do not fit, or a dtype or combination without a kernel.
    """
    require_float(x.dtype, what="conv_bias")
    _require_operands(x, w, conv, residual)
    if residual is not None and not relu:
        raise Unsupported("a residual is added before a ReLU: pass relu=True, or add the residual afterwards")
    require_vector("bias", bias, w.shape[0], x)
    epilogue = "bias_residual_relu" if residual is not None else "bias_relu" if relu else "bias"
    args = (bias,) if residual is None else (bias, nhwc(residual))
    y = _launched(x, w, conv, epilogue, args)
    return references.conv_bias(x, w, bias, conv, relu=relu, residual=residual) if y is None else y


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

    The sums are conv(x), or those of an x whose zero is stored as another integer: conv(x) + ``zero_sums``, in int32.
    The rest is fp32 in the order in which it is written here.

    Args:
        x: int8.
        w: int8 [K, C, R, S].
        scale: fp32 [K], from units of the int32 sums to units of y; see ``requantization``.
        bias: fp32 [K], in units of y.
        conv: the window.
        relu: saturate to [0, 127] instead of [-128, 127].
        residual: int8 in the shape of the result.
        residual_scale: from units of the residual to units of y; taken as fp32.
        zero_sums: int32 [16, K] of ``zero_point.zero_sums``; the window is 3x3 with padding 1 then.

    Returns:
        y int8 [N, K, P, Q].

    Raises:
        ShapeError, Unsupported: operands that do not fit, or sums that int32 may not hold.
    """
    if x.dtype != torch.int8:
        raise Unsupported(f"conv_int8 takes int8, not {str(x.dtype).removeprefix('torch.')}")
    _require_operands(x, w, conv, residual)
    require_int32_sums(x, w, zero_sums)
    if zero_sums is not None:
        require_zero_sums("zero_sums", zero_sums, w, conv)
    require_vector("scale", scale, w.shape[0], x)
    require_vector("bias", bias, w.shape[0], x)
    require_residual_scale(residual, residual_scale)
    epilogue, args = "requantize", tuple[Any, ...]((scale, bias))
    if residual is not None and residual_scale is not None:
        epilogue, args = "requantize_residual", (scale, bias, nhwc(residual), float(residual_scale))
    y = _launched(x, w, conv, f"{epilogue}_relu" if relu else epilogue, args, zero_sums)
    if y is not None:
        return y
    return references.conv_int8(
        x,
        w,
        scale,
        bias,
        conv,
        relu=relu,
        residual=residual,
        residual_scale=residual_scale,
        zero_sums=zero_sums,
    )


def fold(
    w: Tensor, gamma: Tensor | None, beta: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that does what ``w`` and a batch norm in evaluation mode do.

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
    """What ``conv_int8`` multiplies and adds, all in units of its result."""

    scale: Tensor
    """fp32 [K]."""
    bias: Tensor
    """fp32 [K]."""
    residual_scale: float | None
    """A number of fp32, or None where there is no residual."""


def requantization(
    s_x: float, s_w: Tensor, s_out: float, bias: Tensor, s_residual: float | None = None
) -> Requantization:
    """From quantization scales (real value = scale * int8) to what ``conv_int8`` takes; fp64, rounded once.

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


def require_scales(**scales: float | Tensor | None) -> None:
    """Refuse scales that quantize nothing.

    Raises:
        Unsupported: one of them, named, is not positive and finite.
    """
    for name, scale in scales.items():
        if scale is None:
            continue
        values = scale.tolist() if isinstance(scale, Tensor) else [scale]
        for value in values:
            if not (value > 0 and math.isfinite(value)):
                raise Unsupported(
                    f"{name} holds {value}, but a quantization scale is a positive, finite number"
                )


def require_vector(name: str, vector: Tensor, channels: int, x: Tensor) -> None:
    """Refuse what is not one fp32 number for each channel (fp64 beside fp64 activations), in one piece.

    Raises:
        ShapeError: the message names the vector.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if vector.shape != (channels,) or vector.dtype != dtype or not vector.is_contiguous():
        raise ShapeError(
            f"{name} is {vector.dtype} {tuple(vector.shape)} with strides {vector.stride()}:"
            f" it must be {dtype} ({channels},) in one piece"
        )


def require_zero_sums(name: str, sums: Tensor, w: Tensor, conv: Conv) -> None:
    """Refuse what ``zero_point.zero_sums`` does not make of ``w``, and windows that it is not made for.

    Raises:
        ShapeError: the message names the sums.
    """
    if not has_zero_sums(conv):
        raise ShapeError(
            f"{name} belongs to a 3x3 convolution with padding 1, not to {conv.r}x{conv.s} with {conv.padding}"
        )
    expected = (COMBINATIONS, w.shape[0])
    if sums.shape != expected or sums.dtype != torch.int32 or not sums.is_contiguous():
        raise ShapeError(
            f"{name} is {sums.dtype} {tuple(sums.shape)} with strides {sums.stride()}:"
            f" it must be torch.int32 {expected} in one piece"
        )


def require_int32_sums(x: Tensor, w: Tensor, zero_sums: Tensor | None = None) -> None:
    """Refuse integer products without elements, and those so long that int32 may not hold their sum.

    With ``zero_sums`` an input's values reach 255, so half as many fit.

    Raises:
        ShapeError: a size is zero.
        Unsupported: too many products.
    """
    if x.numel() == 0:
        raise ShapeError(f"x is {tuple(x.shape)}: quantized kernels take at least one element")
    limit = INT32_PRODUCTS if zero_sums is None else INT32_PRODUCTS // 2
    if w[0].numel() >= limit:
        raise Unsupported(
            f"a weight of {tuple(w.shape)} adds up {w[0].numel()} products, which int32 may not hold:"
            f" at most {limit - 1}"
        )


def require_residual_scale(residual: Tensor | None, scale: float | None) -> None:
    """Refuse an int8 residual without its scale, and a scale without a residual.

    Raises:
        ShapeError: one is given and the other is not.
    """
    if (residual is None) != (scale is None):
        given, missing = ("residual", "residual_scale") if scale is None else ("residual_scale", "residual")
        raise ShapeError(f"{given} is given without {missing}: give both or neither")


def _launched(
    x: Tensor, w: Tensor, conv: Conv, epilogue: str, args: tuple[Any, ...], zero_sums: Tensor | None = None
) -> Tensor | None:
    """The result of the kernel, or None where plain PyTorch is to compute it."""
    n, c, h, width = x.shape
    problem = Problem("fprop", x.dtype, n, h, width, c, w.shape[0], conv, "identity", epilogue)
    tile = chosen_for(problem, x)
    if tile == REFERENCE:
        return None
    y = empty_nhwc(x, n, w.shape[0], *conv.output_size(h, width))
    fprop(nhwc(x), w, y, conv, tile, "identity", (), epilogue, args, zero_sums)
    return y


def _require_operands(x: Tensor, w: Tensor, conv: Conv, residual: Tensor | None) -> None:
    if (
        x.ndim != 4
        or w.ndim != 4
        or x.shape[1] != w.shape[1]
        or w.shape[2:] != (conv.r, conv.s)
        or 0 in w.shape
    ):
        raise ShapeError(
            f"x {tuple(x.shape)} and w {tuple(w.shape)} do not fit a {conv.r}x{conv.s} convolution:"
            " x is [N, C, H, W] and w [K, C, R, S]"
        )
    if w.dtype != x.dtype:
        raise ShapeError(f"x is {x.dtype} and w is {w.dtype}: convert one of them")
    if residual is None:
        return
    shape = (x.shape[0], w.shape[0], *conv.output_size(x.shape[2], x.shape[3]))
    if residual.shape != shape or residual.dtype != x.dtype:
        raise ShapeError(
            f"the residual is {residual.dtype} {tuple(residual.shape)}, but the convolution gives {x.dtype} {shape}"
        )
