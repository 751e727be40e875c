"""Checks of operands, whose errors name the operand and say what it must be."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.operands.folded import Folded
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.zero_point import COMBINATIONS, has_zero_sums

INT32_PRODUCTS = 2**31 // 128**2
"""This many products of two int8 may add up to 2**31, which int32 does not hold."""


def require_convolution(x: Tensor, w: Tensor, conv: Conv, *, name: str = "x") -> None:
    """Refuse an input and a weight that do not fit a convolution with the window ``conv``."""
    fits = x.ndim == w.ndim == 4 and x.shape[1] == w.shape[1] and w.shape[2:] == (conv.r, conv.s)
    if not fits or 0 in w.shape:
        raise ShapeError(
            f"{name} {tuple(x.shape)} and w {tuple(w.shape)} do not fit a {conv.r}x{conv.s} convolution:"
            f" {name} is [N, C, H, W] and w [K, C, R, S]"
        )


def require_same_dtype(x: Tensor, w: Tensor) -> None:
    """Refuse a weight in another dtype than the activation."""
    if w.dtype != x.dtype:
        raise ShapeError(f"x is {x.dtype} and w is {w.dtype}: convert one of them")


def require_vector(name: str, vector: Tensor, channels: int, x: Tensor) -> None:
    """Refuse a vector that is not one fp32 number for each channel (fp64 beside fp64 activations), contiguous."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    _require_contiguous(name, vector, (channels,), dtype)


def require_folded(layer: Folded, conv: Conv, x: Tensor, prefix: str = "") -> None:
    """Refuse a bias, scale or zero sums that do not fit the layer's weight and its input ``x``."""
    channels = layer.w.shape[0]
    require_vector(f"{prefix}bias", layer.bias, channels, x)
    if layer.zero_sums is not None:
        _require_zero_sums(f"{prefix}zero_sums", layer.zero_sums, channels, conv)
        if layer.scale is None:
            raise Unsupported(f"{prefix}zero_sums belongs to int8 activations, not to {x.dtype}")
    if layer.scale is not None:
        require_int32_sums(x, layer.w, layer.zero_sums)
        require_vector(f"{prefix}scale", layer.scale, channels, x)


def require_int32_sums(x: Tensor, w: Tensor, zero_sums: Tensor | None = None) -> None:
    """Refuse an int8 input without elements, and a weight so long that int32 may not hold the sum of its products.

    With ``zero_sums`` an input's values reach 255, so half as many products fit.
    """
    if x.numel() == 0:
        raise ShapeError(f"x is {tuple(x.shape)}: quantized kernels take at least one element")
    limit = INT32_PRODUCTS if zero_sums is None else INT32_PRODUCTS // 2
    if w[0].numel() >= limit:
        raise Unsupported(
            f"a weight of {tuple(w.shape)} adds up {w[0].numel()} products, which int32 may not hold:"
            f" at most {limit - 1}"
        )


def require_residual(residual: Tensor | None, scale: float | None, x: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a residual that is not of the result's ``shape`` and dtype, and in int8 one without its scale."""
    if residual is not None and (residual.shape != shape or residual.dtype != x.dtype):
        raise ShapeError(
            f"the residual is {residual.dtype} {tuple(residual.shape)}, but the convolution gives {x.dtype} {shape}"
        )
    if x.dtype != torch.int8:
        if scale is not None:
            raise ShapeError("residual_scale belongs to an int8 residual")
    elif (residual is None) != (scale is None):
        given, missing = ("residual", "residual_scale") if scale is None else ("residual_scale", "residual")
        raise ShapeError(f"{given} is given without {missing}: give both or neither")


def require_scales(**scales: float | Tensor | None) -> None:
    """Refuse quantization scales that are not positive and finite; None is accepted."""
    for name, scale in scales.items():
        values = [] if scale is None else scale.tolist() if isinstance(scale, Tensor) else [scale]
        for value in values:
            if not (value > 0 and math.isfinite(value)):
                raise Unsupported(
                    f"{name} holds {value}, but a quantization scale is a positive, finite number"
                )


def _require_zero_sums(name: str, sums: Tensor, channels: int, conv: Conv) -> None:
    if not has_zero_sums(conv):
        raise ShapeError(
            f"{name} belongs to a 3x3 convolution with padding 1, not to {conv.r}x{conv.s} with {conv.padding}"
        )
    _require_contiguous(name, sums, (COMBINATIONS, channels), torch.int32)


def _require_contiguous(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
        raise ShapeError(
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} with strides {tensor.stride()}:"
            f" it must be {dtype} {shape} and contiguous"
        )
