"""Pooling and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from calibration.execution.attributes import (
    Attributes,
    Operation,
    Optional,
    Unsupported,
    last_first,
    per_axis,
    windows,
)


def _pooled(at: Attributes, size: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Padding in front of and behind each axis, and what ``ceil_mode`` adds behind that."""
    kernel = at["kernel_shape"]
    before, after = windows(at, size, kernel)
    beyond = [0] * len(kernel)
    if at.get("ceil_mode"):
        strides, dilations = per_axis(at, "strides", len(kernel)), per_axis(at, "dilations", len(kernel))
        for axis, (taps, stride) in enumerate(zip(kernel, strides, strict=True)):
            rest = size[axis] + before[axis] + after[axis] - (taps - 1) * dilations[axis] - 1
            steps = math.ceil(rest / stride)
            if (
                steps * stride >= size[axis] + before[axis]
            ):  # a window must begin within the input or in front of it
                steps -= 1
            beyond[axis] = max(steps * stride - rest, 0)
    return before, after, beyond


def _max_pool(at: Attributes, x: Tensor) -> Tensor:
    kernel = at["kernel_shape"]
    count = len(kernel)
    before, after, beyond = _pooled(at, x.shape[2:])
    behind = [a + b for a, b in zip(after, beyond, strict=True)]
    padding = before
    if before != behind or any(2 * low > taps for low, taps in zip(before, kernel, strict=True)):
        x, padding = F.pad(x, last_first(before, behind), value=-math.inf), [0] * count
    pool: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[count - 1]
    return pool(x, kernel, per_axis(at, "strides", count), padding, per_axis(at, "dilations", count))


def _average_pool(at: Attributes, x: Tensor) -> Tensor:
    kernel = at["kernel_shape"]
    count = len(kernel)
    if any(step != 1 for step in per_axis(at, "dilations", count)):
        raise Unsupported("dilations")
    before, after, beyond = _pooled(at, x.shape[2:])
    pool: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[count - 1]
    strides, area = per_axis(at, "strides", count), math.prod(kernel)
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype)
    counted = F.pad(counted, last_first(before, after), value=1.0 if at.get("count_include_pad") else 0.0)
    x = F.pad(x, last_first(before, after))
    if any(beyond):
        x, counted = (F.pad(each, last_first([0] * count, beyond)) for each in (x, counted))
    sums, numbers = (pool(each, kernel, strides) * area for each in (x, counted))
    return sums / numbers


def _global(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda at, x: reduce(x, tuple(range(2, x.ndim)), keepdim=True)


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduced(at: Attributes, x: Tensor, axes: Optional = None) -> Tensor:
        wanted = at.get("axes") if axes is None else axes.tolist()
        if not wanted:
            if at.get("noop_with_empty_axes"):
                return x
            wanted = range(x.ndim)
        return function(x, tuple(wanted), keepdim=bool(at.get("keepdims", 1)))

    return reduced


def _argmax(at: Attributes, x: Tensor) -> Tensor:
    if at.get("select_last_index"):
        raise Unsupported("select_last_index")
    return x.argmax(at.get("axis", 0), keepdim=bool(at.get("keepdims", 1)))


POOLING: dict[str, Operation] = {
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalMaxPool": _global(torch.amax),
    "GlobalAveragePool": _global(torch.mean),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ArgMax": _argmax,
}
"""Functions by ONNX operator."""
