"""A folded ONNX ResNet executed in PyTorch, for what ONNX Runtime cannot do: gradients, and stopping at a layer.

Q/DQ nodes are executed as they are written, so a deployable graph gives the same integers here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
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
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """One operation with one output."""

    op: str
    name: str
    inputs: tuple[str, ...]
    output: str
    attributes: Attributes


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
        unknown = [node for node in nodes if node.op not in _operations()]
        if unknown:
            raise CalibrationError(
                f"'{unknown[0].name}' is a {unknown[0].op}, which only ONNX Runtime executes here: use --effort fast"
            )
        for node in nodes:
            if all(name in self.constants for name in node.inputs):
                self.constants[node.output] = self.step(node, {})
        self.nodes = tuple(node for node in nodes if node.output not in self.constants)
        last_use = {
            name: index
            for index, node in enumerate(self.nodes)
            for name in (*node.inputs, node.output)
            if name not in self.constants and name != self.output
        }
        self._finished: list[list[str]] = [[] for _ in self.nodes]
        for name, index in last_use.items():
            self._finished[index].append(name)

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
        return _operations()[node.op](node.attributes, *arguments)

    def finished(self, index: int) -> list[str]:
        """Tensors that no node after number ``index`` uses."""
        return self._finished[index]


@cache
def _operations() -> dict[str, Callable[..., Tensor]]:
    """Functions by ONNX operation, called with the node's attributes and its inputs."""
    import torch
    from torch.nn import functional as F

    def cut(attributes: Attributes, x: Tensor, *where: Tensor) -> Tensor:
        cuts = [slice(None)] * x.ndim
        for start, end, axis, step in zip(*(values.tolist() for values in where), strict=True):
            cuts[axis] = slice(start, end, step)
        return x[tuple(cuts)]

    def pad(attributes: Attributes, x: Tensor, amounts: Tensor, value: Tensor | None = None) -> Tensor:
        before, after = amounts[: x.ndim].tolist(), amounts[x.ndim :].tolist()
        # PyTorch wants the last axis first
        widths = [width for axis in reversed(range(x.ndim)) for width in (before[axis], after[axis])]
        return F.pad(x, widths, value=0.0 if value is None else float(value))

    def quantize(attributes: Attributes, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return ((x / scale).round() + zero_point).clamp(-128, 127).to(torch.int8)

    def dequantize(attributes: Attributes, q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        axes = [1] * (q.ndim - 1)
        steps = q.to(scale.dtype) - zero_point.to(scale.dtype).reshape(-1, *axes)
        return steps * (scale.reshape(-1, *axes) if scale.ndim else scale)

    float_types = {1: torch.float32, 10: torch.float16, 11: torch.float64}  # by ONNX element type
    return {
        "Cast": lambda at, x: x.to(float_types[at["to"]]),
        "Transpose": lambda at, x: x.permute(at["perm"]),
        "Conv": lambda at, x, weight, bias: F.conv2d(
            x, weight, bias, at["strides"], at["pads"][:2], at["dilations"], at["group"]
        ),
        "Gemm": lambda at, x, weight, bias: F.linear(x, weight if at.get("transB") else weight.t(), bias),
        "Relu": lambda at, x: x.relu(),
        "Add": lambda at, left, right: left + right,
        "Mul": lambda at, left, right: left * right,
        "MaxPool": lambda at, x: F.max_pool2d(x, at["kernel_shape"], at["strides"], at["pads"][:2]),
        "GlobalAveragePool": lambda at, x: x.mean((2, 3), keepdim=True),
        "Flatten": lambda at, x: x.flatten(1),
        "Slice": cut,
        "Pad": pad,
        "QuantizeLinear": quantize,
        "DequantizeLinear": dequantize,
    }
