"""Constants, shapes, types, and 8-bit numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from calibration.execution.attributes import (
    Attributes,
    Operation,
    Unsupported,
)


def _constant(at: Attributes) -> Tensor:
    from onnx import numpy_helper

    if "value" in at:
        return torch.from_numpy(numpy_helper.to_array(at["value"]).copy())
    kinds = {
        "value_float": torch.float32,
        "value_floats": torch.float32,
        "value_int": torch.int64,
        "value_ints": torch.int64,
    }
    name = next((name for name in kinds if name in at), None)
    if name is None:
        raise Unsupported("a sparse or text value")
    return torch.tensor(at[name], dtype=kinds[name])


def _constant_of_shape(at: Attributes, shape: Tensor) -> Tensor:
    from onnx import numpy_helper

    value = torch.from_numpy(numpy_helper.to_array(at["value"]).copy()) if "value" in at else torch.zeros(1)
    return value.expand(shape.tolist())


def _shape(at: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[at.get("start", 0) : at.get("end", x.ndim)], dtype=torch.int64)


_TYPES = {
    1: torch.float32, 10: torch.float16, 11: torch.float64, 2: torch.uint8, 3: torch.int8, 6: torch.int32,
    7: torch.int64, 9: torch.bool,
}  # fmt: skip
"""Types by ONNX element type."""


def _quantize(at: Attributes, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    steps, zero = _along(at, x, scale), _along(at, x, zero_point)
    return ((x / steps).round() + zero).clamp(-128, 127).to(torch.int8)


def _dequantize(at: Attributes, q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    steps = q.to(scale.dtype) - _along(at, q, zero_point.to(scale.dtype))
    return steps * _along(at, q, scale)


def _along(at: Attributes, x: Tensor, values: Tensor) -> Tensor:
    """``values`` [K] along the node's axis; a single number as it is."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.ndim
    shape[at.get("axis", 1)] = -1
    return values.reshape(shape)


CONVERSIONS: dict[str, Operation] = {
    "Cast": lambda at, x: x.to(_TYPES[at["to"]]),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
"""Functions by ONNX operator."""
