"""A convolution with the nodes that its step takes in: residual add, ReLU, the stem's max pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import onnx_graphsurgeon as gs

from rescompile.backends.triton.lowering.graph import (
    Array,
    Graph,
    Weight,
    constant,
    producer,
    refused,
    weight_of,
)
from rescompile.backends.triton.steps import Window


@dataclass(frozen=True)
class FusedConvolution:
    """A convolution and the nodes that run inside its step."""

    nodes: tuple[gs.Node, ...]
    """The convolution first."""
    residual: gs.Tensor | None
    """The tensor that is added."""

    @property
    def conv(self) -> gs.Node:
        """The convolution."""
        return self.nodes[0]

    @property
    def name(self) -> str:
        """Name of the convolution."""
        return str(self.conv.name)

    @property
    def output(self) -> gs.Tensor:
        """The tensor that the step makes."""
        return self.nodes[-1].outputs[0]

    def has(self, op: str) -> bool:
        """Whether a node is an ``op``."""
        return any(node.op == op for node in self.nodes)


class Operands(NamedTuple):
    """Constants of a convolution."""

    window: Window
    weight: Weight
    bias: Array


def fused_convolution(graph: Graph, conv: gs.Node) -> FusedConvolution:
    """``conv`` with the nodes behind it that it takes in: each is the only reader of the one before."""
    nodes, residual = [conv], None
    after = graph.only_reader(conv.outputs[0])
    if after is not None and after.op == "Add" and _takes_add(conv, after):
        residual = next(tensor for tensor in after.inputs if tensor is not conv.outputs[0])
        nodes.append(after)
        after = graph.only_reader(after.outputs[0])
    if after is not None and after.op == "Relu":
        nodes.append(after)
        after = graph.only_reader(after.outputs[0])
    if residual is None and after is not None and after.op == "MaxPool":
        nodes.append(after)
    return FusedConvolution(tuple(nodes), residual)


def operands_of(conv: gs.Node) -> Operands:
    """Window, weight and bias of a convolution.

    Raises:
        BackendError: they are computed, or no kernel supports their form.
    """
    weight = weight_of(conv.inputs[1])
    bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    if weight is None or bias is None or weight.values.ndim != 4:
        raise refused(conv, "its weight [K, C, R, S] and its bias must be constants")
    r, s = weight.values.shape[2:]
    strides, pads = conv.attrs.get("strides", [1, 1]), conv.attrs.get("pads", [0] * 4)
    plain = conv.attrs.get("group", 1) == 1 and set(conv.attrs.get("dilations", [1])) == {1}
    if not plain or len(set(strides)) > 1 or len(set(pads)) > 1 or "auto_pad" in conv.attrs:
        raise refused(
            conv, "kernels have one stride and one padding for both axes, and neither groups nor dilations"
        )
    return Operands(Window(r, s, int(strides[0]), int(pads[0])), weight, bias)


def require_pool(node: gs.Node) -> None:
    """Raise a BackendError where the stem's kernel does not compute this max pool."""
    shape = tuple(node.attrs.get(key) for key in ("kernel_shape", "strides", "pads"))
    if shape != ([3, 3], [2, 2], [1, 1, 1, 1]) or node.attrs.get("ceil_mode", 0) != 0:
        raise refused(node, "the stem's max pool must be 3x3 with stride 2 and padding 1")


def _takes_add(conv: gs.Node, add: gs.Node) -> bool:
    """Whether the add runs in this convolution; if it adds two convolutions, it runs in the first one named."""
    first = next(node for node in map(producer, add.inputs) if node is not None and node.op == "Conv")
    return add.inputs[0] is not add.inputs[1] and first is conv
