"""The deployable graph as lowering reads it: who makes and who uses a tensor, and what stands behind Q/DQ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from rescompile.errors import BackendError
from rescompile.graph.shared.metadata import offsets_of

Array = NDArray[Any]
MIXED = "networks of mixed precision have no plan yet; pass --fp16-blocks none, or --precision fp16"


class Quantized(NamedTuple):
    """A tensor behind Q/DQ, or one that has none."""

    name: str
    """Of the tensor in front of its quantizer."""
    scale: float | None


class Weight(NamedTuple):
    """A constant operand."""

    values: Array
    scales: NDArray[np.float32] | None
    """By output channel, where the values are int8."""


class Graph:
    """An ONNX graph with one input and one output."""

    def __init__(self, model: onnx.ModelProto) -> None:
        proto = model.graph
        self._offsets = offsets_of(model)
        self.nodes = list(proto.node)
        self.input, self.output = proto.input[0], proto.output[0].name
        self._constants = {tensor.name: tensor for tensor in proto.initializer}
        self._position = {output: index for index, node in enumerate(self.nodes) for output in node.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._users.setdefault(name, []).append(node)

    def maker(self, tensor: str) -> onnx.NodeProto | None:
        """The node that makes ``tensor``; None for inputs and constants."""
        index = self._position.get(tensor)
        return None if index is None else self.nodes[index]

    def position(self, node: onnx.NodeProto) -> int:
        """Of ``node`` in the order of execution."""
        return self._position[node.output[0]]

    def users(self, tensor: str) -> list[onnx.NodeProto]:
        """Nodes that read ``tensor``."""
        return self._users.get(tensor, [])

    def only_user(self, tensor: str) -> onnx.NodeProto | None:
        """The node that alone reads ``tensor``; None where there are several, or it is the output."""
        users = self.users(tensor)
        return users[0] if len(users) == 1 and tensor != self.output else None

    def image_path(self) -> list[onnx.NodeProto]:
        """What is done to the input before a quantizer or a convolution reads it, in the order of execution."""
        path: list[onnx.NodeProto] = []
        node = self.only_user(self.input.name)
        while node is not None and node.op_type not in {"QuantizeLinear", "Conv"}:
            path.append(node)
            node = self.only_user(node.output[0])
        return path

    def constant(self, name: str) -> Array | None:
        """The values of an initializer, or None where ``name`` is computed."""
        tensor = self._constants.get(name)
        return None if tensor is None else onnx.numpy_helper.to_array(tensor)

    def behind(self, tensor: str) -> Quantized:
        """``tensor`` with the Q/DQ pair above it stepped over, if there is one.

        Raises:
            BackendError: a quantizer that is not symmetric, or not the same in both directions.
        """
        down = self.maker(tensor)
        if down is None or down.op_type != "DequantizeLinear":
            return Quantized(tensor, None)
        up = self.maker(down.input[0])
        if up is None or up.op_type != "QuantizeLinear":
            raise refused(down, "it reads integers that no QuantizeLinear makes")
        scale = self._scale(up)
        if self._scale(down) != scale:
            raise refused(down, "its scale is not that of its QuantizeLinear")
        return Quantized(up.input[0], scale)

    def scale_of(self, tensor: str) -> float | None:
        """Scale of the one quantizer that reads ``tensor``, or None where it is read as it is.

        Raises:
            BackendError: it is read in both ways, or by quantizers of different scales.
        """
        scales = {
            self._scale(node) if node.op_type == "QuantizeLinear" else None for node in self.users(tensor)
        }
        if len(scales) > 1:
            raise BackendError(
                f"the Triton engine keeps one form of each tensor, but '{tensor}' is read in several (by "
                f"{', '.join(node.name for node in self.users(tensor))}): {MIXED}"
            )
        return scales.pop() if scales else None

    def offset_of(self, tensor: str) -> float:
        """What is missing in ``tensor`` because its zero is stored as the lowest integer; 0 where it is stored as 0."""
        return self._offsets.get(tensor, 0.0)

    def weight(self, name: str) -> Weight | None:
        """A constant in floating point, or int8 values behind a DequantizeLinear; None where it is computed.

        Raises:
            BackendError: int8 values that are not symmetric.
        """
        values = self.constant(name)
        if values is not None:
            return Weight(values, None)
        down = self.maker(name)
        stored = None if down is None else self.constant(down.input[0])
        if down is None or down.op_type != "DequantizeLinear" or stored is None:
            return None
        self._require_symmetric(down)
        scales = self.constant(down.input[1])
        if stored.dtype != np.int8 or scales is None:
            raise refused(down, "a quantized weight has int8 values and constant scales")
        if scales.ndim == 1 and int(attributes(down).get("axis", 1)) != 0:
            raise refused(down, "a weight has one scale for each output channel, on axis 0")
        return Weight(stored, np.broadcast_to(scales.astype(np.float32), (len(stored),)))

    def _scale(self, node: onnx.NodeProto) -> float:
        self._require_symmetric(node)
        scale = self.constant(node.input[1])
        if scale is None or scale.size != 1 or not scale > 0:
            raise refused(node, "an activation has one positive, constant scale")
        return float(scale.reshape(()))

    def _require_symmetric(self, node: onnx.NodeProto) -> None:
        zero = self.constant(node.input[2]) if len(node.input) > 2 else None
        if zero is None or zero.dtype != np.int8 or zero.any():
            raise refused(node, "quantizers are symmetric int8, with a zero point of 0")


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Every attribute by name, as Python values."""
    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def refused(node: onnx.NodeProto, reason: str) -> BackendError:
    """The error for a node that has no place in a plan."""
    return BackendError(
        f"the Triton engine cannot take '{node.name or node.output[0]}' ({node.op_type}): {reason}; "
        "pass --backend tensorrt, tensorrt-rtx or openvino for this network"
    )


def unused(graph: Graph, used: set[str]) -> Iterator[onnx.NodeProto]:
    """Nodes that no step covers, quantizers aside."""
    for node in graph.nodes:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"} and node.output[0] not in used:
            yield node
