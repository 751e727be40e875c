"""A deployable graph executed by PyTorch, node by node as ONNX defines them, in fp32 or fp64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_LOW, _HIGH = -128, 127


@dataclass(frozen=True)
class Execution:
    """What an execution gives."""

    logits: Tensor
    unrounded: dict[str, Tensor] = field(repr=False)
    """What every quantizer rounds, in units of its scale and from its zero point, by the tensor that it quantizes."""


def execute(
    model: onnx.ModelProto,
    images: NDArray[Any],
    dtype: torch.dtype,
    integers: Mapping[str, Tensor] | None = None,
) -> Execution:
    """Execute ``model`` on ``images`` with every number of ``dtype``, but for integers.

    Args:
        model: an INT8 graph as ``rescompile`` makes it.
        images: as it takes them.
        dtype: fp32 or fp64.
        integers: int8 tensors that stand in for what quantizers give, by the name of the tensor that is quantized.
    """
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values: dict[str, Tensor] = {model.graph.input[0].name: torch.from_numpy(images)}
    last = {name: node.output[0] for node in model.graph.node for name in node.input}
    unrounded: dict[str, Tensor] = {}

    def operand(name: str) -> Tensor:
        if name in values:
            return values[name]
        # a constant: all but int8 weights, zero points and shapes are numbers of the graph's own type
        found = torch.tensor(constants[name])
        return found.to(dtype) if found.is_floating_point() else found

    for node in model.graph.node:
        operands = [operand(name) for name in node.input if name]
        if node.op_type == "QuantizeLinear":
            scaled, zero_point = operands[0].to(dtype) / operands[1], operands[2].to(dtype)
            unrounded[node.input[0]] = scaled + zero_point
            rounded = (scaled.round() + zero_point).clamp(_LOW, _HIGH).to(torch.int8)
            values[node.output[0]] = (integers or {}).get(node.input[0], rounded)
        else:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            values[node.output[0]] = _OPS[node.op_type](operands, attributes, dtype)
        for name in node.input:
            if last.get(name) == node.output[0]:
                values.pop(name, None)
    return Execution(values[model.graph.output[0].name], unrounded)


Operation = Callable[[list[Tensor], dict[str, Any], torch.dtype], Tensor]


def _dequantize(operands: list[Tensor], attrs: dict[str, Any], dtype: torch.dtype) -> Tensor:
    stored, scale, zero_point = operands
    if scale.ndim == 1:
        shape = [-1 if axis == attrs.get("axis", 1) else 1 for axis in range(stored.ndim)]
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    return (stored.to(dtype) - zero_point.to(dtype)) * scale


def _conv(operands: list[Tensor], attrs: dict[str, Any], dtype: torch.dtype) -> Tensor:
    top, left, bottom, right = attrs.get("pads", [0] * 4)
    padded = F.pad(operands[0], (left, right, top, bottom))
    return F.conv2d(padded, *operands[1:], stride=attrs.get("strides", [1, 1]))


def _pad(operands: list[Tensor], attrs: dict[str, Any], dtype: torch.dtype) -> Tensor:
    widths = operands[1].reshape(2, -1).T.flip(0).flatten().tolist()
    return F.pad(operands[0], widths, value=float(operands[2]) if len(operands) > 2 else 0.0)


def _slice(operands: list[Tensor], attrs: dict[str, Any], dtype: torch.dtype) -> Tensor:
    whole = [slice(None)] * operands[0].ndim
    for start, end, axis, step in zip(*(each.tolist() for each in operands[1:5]), strict=True):
        whole[axis] = slice(start, end, step)
    return operands[0][tuple(whole)]


def _pool(operands: list[Tensor], attrs: dict[str, Any], dtype: torch.dtype) -> Tensor:
    return F.max_pool2d(operands[0], attrs["kernel_shape"], attrs["strides"], attrs["pads"][:2])


def _gemm(operands: list[Tensor], attrs: dict[str, Any], dtype: torch.dtype) -> Tensor:
    weight = operands[1] if attrs.get("transB") else operands[1].T
    return F.linear(operands[0], weight, operands[2])


_OPS: dict[str, Operation] = {
    "DequantizeLinear": _dequantize,
    "Conv": _conv,
    "Gemm": _gemm,
    "MaxPool": _pool,
    "Pad": _pad,
    "Slice": _slice,
    "Relu": lambda operands, attrs, dtype: operands[0].relu(),
    "Add": lambda operands, attrs, dtype: operands[0].to(dtype) + operands[1].to(dtype),
    "Mul": lambda operands, attrs, dtype: operands[0].to(dtype) * operands[1].to(dtype),
    "Cast": lambda operands, attrs, dtype: operands[0].to(dtype),
    "Transpose": lambda operands, attrs, dtype: operands[0].permute(attrs["perm"]),
    "GlobalAveragePool": lambda operands, attrs, dtype: operands[0].mean(dim=(2, 3), keepdim=True),
    "Flatten": lambda operands, attrs, dtype: operands[0].flatten(1),
}
