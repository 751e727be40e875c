"""A folded ONNX ResNet executed in PyTorch, for what ONNX Runtime cannot do: gradients, and stopping at a layer.

Q/DQ nodes are executed as they are written, so a deployable graph gives the same integers here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from calibration.errors import CalibrationError

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray
    from torch import Tensor

    Array = TypeVar("Array", NDArray[np.float32], Tensor)

WEIGHTED_OPS = ("Conv", "Gemm")

Values = dict[str, "Tensor"]


@dataclass(frozen=True)
class Node:
    """One operation with one output."""

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any]


def read_nodes(model: onnx.ModelProto) -> list[Node]:
    """Nodes of ``model`` in the order of execution."""
    from onnx import helper

    return [
        Node(
            entry.op_type,
            entry.name,
            tuple(entry.input),
            entry.output[0],
            {field.name: helper.get_attribute_value(field) for field in entry.attribute},
        )
        for entry in model.graph.node
    ]


def output_first(node: Node, weight: Array) -> Array:
    """``weight`` of a convolution or Gemm as [O, I, ...]: without ``transB`` a Gemm has it the other way round."""
    return weight if node.op == "Conv" or node.attributes.get("transB") else weight.T


class Network:
    """Nodes in the order of execution, and the constants by tensor name; the caller may replace constants.

    Nodes that only read constants, such as the DequantizeLinear of a weight, are executed once and become constants.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        import torch
        from onnx import numpy_helper

        self.input = model.graph.input[0].name
        self.output = model.graph.output[0].name
        self.constants: Values = {
            entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy())
            for entry in model.graph.initializer
        }
        nodes = read_nodes(model)
        unknown = [node for node in nodes if node.op not in _OPS]
        if unknown:
            raise CalibrationError(
                f"'{unknown[0].name}' is a {unknown[0].op}, which only ONNX Runtime executes here: use --effort fast"
            )
        for node in nodes:
            if all(name in self.constants for name in node.inputs):
                self.constants[node.output] = self.step(node, {})
        self.nodes = tuple(node for node in nodes if node.output not in self.constants)
        self._finished = _last_uses(self)

    def run(self, images: Tensor, observe: Callable[[Node, Tensor], None] | None = None) -> Tensor:
        """Logits of ``images`` [N, 3, H, W]; ``observe`` is called with the output of each node."""
        values: Values = {self.input: images}
        for index, node in enumerate(self.nodes):
            values[node.output] = self.step(node, values)
            if observe:
                observe(node, values[node.output])
            for name in self.finished(index):
                del values[name]
        return values[self.output]

    def step(self, node: Node, values: Values) -> Tensor:
        """Output of one node from the tensors that exist."""
        arguments = [self.constants[name] if name in self.constants else values[name] for name in node.inputs]
        return _OPS[node.op](node, arguments)

    def finished(self, index: int) -> tuple[str, ...]:
        """Tensors that no node after number ``index`` uses."""
        return self._finished[index]


def _last_uses(network: Network) -> tuple[tuple[str, ...], ...]:
    last = {
        name: index
        for index, node in enumerate(network.nodes)
        for name in (*node.inputs, node.output)
        if name not in network.constants and name != network.output
    }
    ending: list[list[str]] = [[] for _ in network.nodes]
    for name, index in last.items():
        ending[index].append(name)
    return tuple(tuple(names) for names in ending)


def _conv(node: Node, arguments: list[Tensor]) -> Tensor:
    from torch.nn.functional import conv2d

    x, weight, bias = arguments
    padding, stride = node.attributes["pads"][:2], node.attributes["strides"]
    return conv2d(x, weight, bias, stride, padding, node.attributes["dilations"], node.attributes["group"])


def _gemm(node: Node, arguments: list[Tensor]) -> Tensor:
    from torch.nn.functional import linear

    x, weight, bias = arguments
    return linear(x, output_first(node, weight), bias)


def _max_pool(node: Node, arguments: list[Tensor]) -> Tensor:
    from torch.nn.functional import max_pool2d

    attributes = node.attributes
    return max_pool2d(arguments[0], attributes["kernel_shape"], attributes["strides"], attributes["pads"][:2])


def _slice(node: Node, arguments: list[Tensor]) -> Tensor:
    x, starts, ends, axes, steps = arguments
    cuts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(*(t.tolist() for t in (starts, ends, axes, steps)), strict=True):
        cuts[axis] = slice(start, end, step)
    return x[tuple(cuts)]


def _pad(node: Node, arguments: list[Tensor]) -> Tensor:
    from torch.nn.functional import pad

    x, amounts = arguments
    before, after = amounts[: x.ndim].tolist(), amounts[x.ndim :].tolist()
    # PyTorch wants the last axis first
    widths = [width for axis in reversed(range(x.ndim)) for width in (before[axis], after[axis])]
    return pad(x, widths)


def _quantize(node: Node, arguments: list[Tensor]) -> Tensor:
    import torch

    x, scale, zero_point = arguments
    return ((x / scale).round() + zero_point).clamp(-128, 127).to(torch.int8)


def _dequantize(node: Node, arguments: list[Tensor]) -> Tensor:
    q, scale, zero_point = arguments
    axes = [1] * (q.ndim - 1)
    steps = q.to(scale.dtype) - zero_point.to(scale.dtype).reshape(-1, *axes)
    return steps * (scale.reshape(-1, *axes) if scale.ndim else scale)


_OPS: dict[str, Callable[[Node, list[Tensor]], Tensor]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "Relu": lambda node, arguments: arguments[0].relu(),
    "Add": lambda node, arguments: arguments[0] + arguments[1],
    "Mul": lambda node, arguments: arguments[0] * arguments[1],
    "MaxPool": _max_pool,
    "GlobalAveragePool": lambda node, arguments: arguments[0].mean((2, 3), keepdim=True),
    "Flatten": lambda node, arguments: arguments[0].flatten(1),
    "Slice": _slice,
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
