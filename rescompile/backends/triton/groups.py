"""A convolution with what runs inside of its step: residual add, ReLU, the stem's max pool."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import onnx

from fused_kernels.operands.geometry import Conv
from rescompile.backends.triton.graph import Array, Graph, Weight, attributes, refused
from rescompile.backends.triton.steps import Window


@dataclass(frozen=True)
class Group:
    """A convolution and the nodes that run inside of its step."""

    conv: onnx.NodeProto
    nodes: tuple[onnx.NodeProto, ...]
    """The convolution first."""
    residual: str | None
    """As the Add reads it."""

    @property
    def output(self) -> str:
        """The tensor that the last of them makes."""
        return str(self.nodes[-1].output[0])

    def has(self, op: str) -> bool:
        """Whether one of them is an ``op``."""
        return any(node.op_type == op for node in self.nodes)


class Operands(NamedTuple):
    """What a convolution multiplies with and adds."""

    window: Window
    weight: Weight
    bias: Array


def group_of(graph: Graph, conv: onnx.NodeProto) -> Group:
    """``conv`` and every node behind it that it takes in: each is the only reader of the one before."""
    nodes, residual = [conv], None
    after = graph.only_user(conv.output[0])
    if after is not None and after.op_type == "Add" and _takes_add(graph, conv, after):
        residual = next(name for name in after.input if name != conv.output[0])
        nodes.append(after)
        after = graph.only_user(after.output[0])
    if after is not None and after.op_type == "Relu":
        nodes.append(after)
        after = graph.only_user(after.output[0])
    if residual is None and after is not None and after.op_type == "MaxPool":
        nodes.append(after)
    return Group(conv, tuple(nodes), residual)


def operands_of(graph: Graph, conv: onnx.NodeProto) -> Operands:
    """Window, weight and bias of a convolution.

    Raises:
        BackendError: they are computed, or of a form that no kernel has.
    """
    attrs = attributes(conv)
    weight = graph.weight(conv.input[1])
    bias = graph.constant(conv.input[2]) if len(conv.input) > 2 else None
    if weight is None or bias is None or weight.values.ndim != 4:
        raise refused(conv, "it takes a constant weight [K, C, R, S] and a constant bias")
    r, s = weight.values.shape[2:]
    strides, pads = attrs.get("strides", [1, 1]), attrs.get("pads", [0] * 4)
    plain = attrs.get("group", 1) == 1 and set(attrs.get("dilations", [1])) == {1}
    if not plain or len(set(strides)) > 1 or len(set(pads)) > 1 or "auto_pad" in attrs:
        raise refused(
            conv, "kernels have one stride and one padding for both axes, and neither groups nor dilations"
        )
    return Operands(Window(r, s, int(strides[0]), int(pads[0])), weight, bias)


def conv_of(window: Window) -> Conv:
    """The window as the kernels' geometry knows it."""
    return Conv(window.r, window.s, window.stride, window.padding)


def require_pool(node: onnx.NodeProto) -> None:
    """Refuse a max pool that the stem's kernel does not compute.

    Raises:
        BackendError: it is not 3x3 with stride 2 and padding 1.
    """
    attrs = attributes(node)
    shape = attrs.get("kernel_shape"), attrs.get("strides"), attrs.get("pads")
    if shape != ([3, 3], [2, 2], [1, 1, 1, 1]) or attrs.get("ceil_mode", 0) != 0:
        raise refused(node, "the stem's max pool is 3x3 with stride 2 and padding 1")


def _takes_add(graph: Graph, conv: onnx.NodeProto, add: onnx.NodeProto) -> bool:
    """Whether the add runs in this convolution: of two convolutions that it adds, in the first one named."""
    makers = [graph.maker(name) for name in add.input]
    convs = [node for node in makers if node is not None and node.op_type == "Conv"]
    return len(set(add.input)) == 2 and convs[0].output[0] == conv.output[0]
