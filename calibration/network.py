"""An fp32 or Q/DQ graph executed in PyTorch, for what ONNX Runtime cannot do: gradients, and stopping at a layer.

Q/DQ nodes are executed as they are written, so a deployable graph gives the same integers here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from calibration.errors import UnknownOperation
from calibration.operators import WEIGHTED_OPS, operator

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    Array = TypeVar("Array", NDArray[np.float32], Tensor)

FLOAT_TYPES = (1, 10, 11, 16)
"""ONNX element types."""

Values = dict[str, "Tensor"]
Attributes = Mapping[str, Any]


@dataclass(frozen=True)
class Node:
    """One operation with one output."""

    op: str
    name: str
    inputs: tuple[str, ...]
    """Empty names stand for inputs that are left out."""
    output: str
    attributes: Attributes


def read_nodes(model: onnx.ModelProto) -> list[Node]:
    """Nodes of ``model`` in the order of execution, one for each part that a Split makes."""
    from onnx import helper

    found = []
    for entry in model.graph.node:
        attributes = {field.name: helper.get_attribute_value(field) for field in entry.attribute}
        inputs = tuple(entry.input)
        if entry.op_type == "Split":
            found += [
                Node(
                    "Split",
                    entry.name,
                    inputs,
                    output,
                    {**attributes, "part": part, "parts": len(entry.output)},
                )
                for part, output in enumerate(entry.output)
            ]
        else:
            found.append(Node(entry.op_type, entry.name, inputs, entry.output[0], attributes))
    return found


def output_first(node: Node, weight: Array) -> Array:
    """``weight`` of a convolution or Gemm as [O, I, ...]: without ``transB`` a Gemm has it the other way round."""
    return weight if node.op == "Conv" or node.attributes.get("transB") else weight.T


def groups_of(node: Node) -> int:
    """Number of groups of a convolution; 1 for other operations."""
    return int(node.attributes.get("group", 1))


def input_channels(outputs: int, inputs: int, groups: int) -> NDArray[np.int64]:
    """[O, I] the channel of the node's input that each entry of a weight [O, I, ...] in ``groups`` multiplies."""
    first = np.arange(outputs) // (outputs // groups) * inputs
    return first[:, None] + np.arange(inputs)


def unknown_operation(model: onnx.ModelProto) -> UnknownOperation | None:
    """The first node of ``model`` that only ONNX Runtime executes, as an error; None if there is none."""
    for node in read_nodes(model):
        if not operator(node.op).executable:
            return UnknownOperation(node.name or node.output, node.op)
    return None


def sole_convolution(model: onnx.ModelProto) -> Node | None:
    """The ungrouped convolution that alone reads the network's input; None if others do, or it is none."""
    image = model.graph.input[0].name
    reading = [node for node in read_nodes(model) if image in node.inputs]
    fits = len(reading) == 1 and reading[0].op == "Conv" and groups_of(reading[0]) == 1
    return reading[0] if fits else None


def weighted_nodes(model: onnx.ModelProto, tensors: Collection[str]) -> list[Node]:
    """Convolutions and Gemms of ``model`` with constant weights that read one of ``tensors``."""
    constants = {entry.name for entry in model.graph.initializer}
    return [
        node
        for node in read_nodes(model)
        if node.op in WEIGHTED_OPS and node.inputs[0] in tensors and node.inputs[1] in constants
    ]


class Network:
    """Nodes in the order of execution, and the constants by tensor name; the caller may replace constants.

    Nodes that only read constants, such as the DequantizeLinear of a weight, are executed once and become constants.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        import torch
        from onnx import numpy_helper

        self.input = model.graph.input[0].name
        self.outputs = tuple(entry.name for entry in model.graph.output)
        self.output = self.outputs[0]
        self.constants: Values = {
            entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy())
            for entry in model.graph.initializer
        }
        if unknown := unknown_operation(model):
            raise unknown
        nodes = read_nodes(model)
        for node in nodes:
            if all(name in self.constants for name in node.inputs if name):
                self.constants[node.output] = self.step(node, {})
        self.nodes = tuple(node for node in nodes if node.output not in self.constants)
        last_use = {
            name: index
            for index, node in enumerate(self.nodes)
            for name in (*node.inputs, node.output)
            if name and name not in self.constants and name not in self.outputs
        }
        self._finished: list[list[str]] = [[] for _ in self.nodes]
        for name, index in last_use.items():
            self._finished[index].append(name)

    def run(self, images: Tensor, observe: Callable[[Node, Tensor], None] | None = None) -> Tensor:
        """First output for ``images`` [N, C, H, W]; ``observe`` is called with the output of each node."""
        return self.run_all(images, observe)[0]

    def run_all(
        self, images: Tensor, observe: Callable[[Node, Tensor], None] | None = None
    ) -> tuple[Tensor, ...]:
        """All outputs for ``images``; as ``run``."""
        values: Values = {self.input: images}
        for index, node in enumerate(self.nodes):
            values[node.output] = self.step(node, values)
            if observe:
                observe(node, values[node.output])
            for name in self.finished(index):
                del values[name]
        return tuple(values[name] if name in values else self.constants[name] for name in self.outputs)

    def step(self, node: Node, values: Values) -> Tensor:
        """Output of one node from the tensors that exist."""
        from calibration.execution.attributes import Unsupported
        from calibration.execution.operations import OPERATIONS

        arguments = [
            None if not name else self.constants[name] if name in self.constants else values[name]
            for name in node.inputs
        ]
        try:
            return OPERATIONS[node.op](node.attributes, *arguments)
        except Unsupported as error:
            raise UnknownOperation(node.name or node.output, node.op, str(error)) from None

    def finished(self, index: int) -> list[str]:
        """Tensors that no node after number ``index`` uses."""
        return self._finished[index]
