"""Convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from calibration.execution.attributes import (
    Attributes,
    Operation,
    Optional,
    last_first,
    padded,
    per_axis,
    text_of,
)


def _conv(at: Attributes, x: Tensor, weight: Tensor, bias: Optional = None) -> Tensor:
    count = x.ndim - 2
    x, padding = padded(at, x, weight.shape[2:])
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[count - 1]
    return convolve(
        x,
        weight,
        bias,
        per_axis(at, "strides", count),
        padding,
        per_axis(at, "dilations", count),
        at.get("group", 1),
    )


def _conv_transpose(at: Attributes, x: Tensor, weight: Tensor, bias: Optional = None) -> Tensor:
    count = x.ndim - 2
    strides, dilations = per_axis(at, "strides", count), per_axis(at, "dilations", count)
    kernel, extra = weight.shape[2:], list(at.get("output_padding", [0] * count))
    whole = [
        stride * (length - 1) + (taps - 1) * dilation + 1
        for stride, length, taps, dilation in zip(strides, x.shape[2:], kernel, dilations, strict=True)
    ]
    auto = text_of(at.get("auto_pad", "NOTSET"))
    if "output_shape" in at or auto.startswith("SAME"):
        wanted = at.get("output_shape", [n * s for n, s in zip(x.shape[2:], strides, strict=True)])[-count:]
        totals = [full + more - want for full, more, want in zip(whole, extra, wanted, strict=True)]
        before = [total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals]
    else:
        pads = list(at.get("pads", [0] * 2 * count))
        before = pads[:count]
        wanted = [
            full + more - low - high
            for full, more, low, high in zip(whole, extra, before, pads[count:], strict=True)
        ]
    transposed: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[
        count - 1
    ]
    y = transposed(x, weight, None, strides, 0, 0, at.get("group", 1), dilations)
    behind = [want + low - full for want, low, full in zip(wanted, before, whole, strict=True)]
    y = F.pad(y, last_first([-low for low in before], behind))
    return y if bias is None else y + bias.reshape(-1, *[1] * count)


def _gemm(at: Attributes, a: Tensor, b: Tensor, c: Optional = None) -> Tensor:
    a = a.t() if at.get("transA") else a
    weight, alpha, beta = (
        b if at.get("transB") else b.t(),
        float(at.get("alpha", 1.0)),
        float(at.get("beta", 1.0)),
    )
    if alpha == 1.0 and beta == 1.0 and (c is None or c.ndim == 1):
        return F.linear(a, weight, c)
    product = alpha * F.linear(a, weight)
    return product if c is None else product + beta * c


WEIGHTS: dict[str, Operation] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": lambda at, a, b: a @ b,
}
"""Functions by ONNX operator."""
