"""An ONNX graph as the lowering reads it: producers, readers, constants and Q/DQ pairs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.errors import BackendError
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.links import consumers
from rescompile.graph.shared.metadata import offsets_of

Array = NDArray[Any]
MIXED = "networks of mixed precision have no plan yet; pass --fp16-blocks none, or --precision fp16"


class Quantized(NamedTuple):
    """A tensor, and the scale of the Q/DQ pair through which it is read."""

    tensor: gs.Tensor
    scale: float | None
    """None where there is no such pair."""

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return str(self.tensor.name)


class Weight(NamedTuple):
    """A constant operand."""

    values: Array
    scales: NDArray[np.float32] | None
    """One for each output channel where the values are int8, else None."""


class Graph:
    """An ONNX graph with one input and one output."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = read(model)
        self.nodes: list[gs.Node] = list(graph.nodes)
        self.input, self.output = graph.inputs[0], graph.outputs[0]
        self._offsets = offsets_of(model)

    def only_reader(self, tensor: gs.Tensor) -> gs.Node | None:
        """The one node that reads ``tensor``; None where there are several, or it is the graph's output."""
        nodes = consumers(tensor)
        return nodes[0] if len(nodes) == 1 and tensor is not self.output else None

    def image_path(self) -> list[gs.Node]:
        """Nodes between the input and the first quantizer or convolution, in the order of execution."""
        path: list[gs.Node] = []
        node = self.only_reader(self.input)
        while node is not None and node.op not in {"QuantizeLinear", "Conv"}:
            path.append(node)
            node = self.only_reader(node.outputs[0])
        return path

    def offset_of(self, tensor: gs.Tensor) -> float:
        """The offset of a tensor whose zero is stored as the lowest integer; 0 where it is stored as 0."""
        return self._offsets.get(tensor.name, 0.0)


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that makes ``tensor``; None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def constant(tensor: gs.Tensor) -> Array | None:
    """The values of a constant; None where ``tensor`` is computed."""
    return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None


def behind_quantizer(tensor: gs.Tensor) -> Quantized:
    """The tensor in front of the Q/DQ pair that makes ``tensor``, or ``tensor`` itself where there is no pair.

    Raises:
        BackendError: the pair is not symmetric, or its two scales differ.
    """
    dequantize = producer(tensor)
    if dequantize is None or dequantize.op != "DequantizeLinear":
        return Quantized(tensor, None)
    quantize = producer(dequantize.inputs[0])
    if quantize is None or quantize.op != "QuantizeLinear":
        raise refused(dequantize, "it reads integers that no QuantizeLinear makes")
    scale = _activation_scale(quantize)
    if _activation_scale(dequantize) != scale:
        raise refused(dequantize, "its scale is not that of its QuantizeLinear")
    return Quantized(quantize.inputs[0], scale)


def scale_of(tensor: gs.Tensor) -> float | None:
    """Scale of the quantizer that reads ``tensor``; None where none does.

    Raises:
        BackendError: it is also read without a quantizer, or by quantizers of different scales.
    """
    readers = consumers(tensor)
    scales = {_activation_scale(node) if node.op == "QuantizeLinear" else None for node in readers}
    if len(scales) > 1:
        raise BackendError(
            f"the Triton engine keeps one form of each tensor, but '{tensor.name}' is read in several (by "
            f"{', '.join(node.name for node in readers)}): {MIXED}"
        )
    return scales.pop() if scales else None


def weight_of(tensor: gs.Tensor) -> Weight | None:
    """A constant in floating point, or int8 values behind a DequantizeLinear; None where it is computed.

    Raises:
        BackendError: the int8 values are not symmetric.
    """
    values = constant(tensor)
    if values is not None:
        return Weight(values, None)
    dequantize = producer(tensor)
    stored = None if dequantize is None else constant(dequantize.inputs[0])
    if dequantize is None or dequantize.op != "DequantizeLinear" or stored is None:
        return None
    _require_symmetric(dequantize)
    scales = constant(dequantize.inputs[1])
    if stored.dtype != np.int8 or scales is None:
        raise refused(dequantize, "a quantized weight must have int8 values and constant scales")
    if scales.ndim == 1 and int(dequantize.attrs.get("axis", 1)) != 0:
        raise refused(dequantize, "a weight must have one scale for each output channel, on axis 0")
    return Weight(stored, np.broadcast_to(scales.astype(np.float32), (len(stored),)))


def refused(node: gs.Node, reason: str) -> BackendError:
    """The error for a node that has no place in a plan."""
    return BackendError(
        f"the Triton engine cannot take '{node.name or node.outputs[0].name}' ({node.op}): {reason}; "
        "pass --backend tensorrt, tensorrt-rtx or openvino for this network"
    )


def _activation_scale(node: gs.Node) -> float:
    _require_symmetric(node)
    scale = constant(node.inputs[1])
    if scale is None or scale.size != 1 or not scale > 0:
        raise refused(node, "an activation must have one positive, constant scale")
    return float(scale.reshape(()))


def _require_symmetric(node: gs.Node) -> None:
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero is None or zero.dtype != np.int8 or zero.any():
        raise refused(node, "quantizers must be symmetric int8, with a zero point of 0")
