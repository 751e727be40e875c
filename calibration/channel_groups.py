"""Which channels of a network must be scaled together.

Dividing a channel by a positive factor where it is made and multiplying where it is used changes nothing, because
convolution is linear and max(x / f, 0) = max(x, 0) / f. An addition ties the channels that it adds, so all blocks of a
stage share their factors, and a slice or pad along the channels carries them over to other positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError

if TYPE_CHECKING:
    import onnx

WEIGHTED = ("Conv", "Gemm")
_SAME_CHANNELS = ("Relu", "MaxPool", "GlobalAveragePool", "Flatten", "Slice", "Cast", "Identity")

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class ChannelGroups:
    """The group of every channel of every tensor; group 0 keeps the factor 1 (images and logits)."""

    of: dict[str, Ids]
    """Tensor to group indices [C]."""
    count: int
    """Number of groups, group 0 included."""


def channel_groups(model: onnx.ModelProto) -> ChannelGroups:
    """Groups of a folded fp32 graph of convolutions, ReLU, pooling, additions, slices and pads.

    Raises:
        CalibrationError: an operation whose effect on channels is not known.
    """
    from onnx import numpy_helper

    constants = {entry.name: entry for entry in model.graph.initializer}
    union = _Union()
    shape = model.graph.input[0].type.tensor_type.shape
    made: dict[str, Ids] = {model.graph.input[0].name: union.new(shape.dim[1].dim_value)}
    fixed = [*made[model.graph.input[0].name]]
    for node in model.graph.node:
        first, output = node.input[0], node.output[0]
        if node.op_type in WEIGHTED:
            made[output] = union.new(_output_channels(node, constants[node.input[1]]))
        elif node.op_type == "Add":
            made[output] = union.tie(made[first], made[node.input[1]])
        elif node.op_type == "Pad":
            pads = numpy_helper.to_array(constants[node.input[1]])
            before, after = int(pads[1]), int(pads[len(pads) // 2 + 1])
            made[output] = np.concatenate([union.new(before), made[first], union.new(after)])
        elif node.op_type in _SAME_CHANNELS:
            made[output] = made[first]
        else:
            raise CalibrationError(
                f"'{node.name}' is a {node.op_type}, whose channels cannot be followed: use --effort fast"
            )
    fixed += [*made[model.graph.output[0].name]]
    return _numbered(made, union, fixed)


def _output_channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
    return int(weight.dims[0] if node.op_type == "Conv" or transposed else weight.dims[1])


def _numbered(made: dict[str, Ids], union: _Union, fixed: list[np.int64]) -> ChannelGroups:
    roots = union.roots()
    pinned = np.unique(roots[np.array(fixed, np.int64)])
    free = np.setdiff1d(np.unique(roots), pinned)
    number = np.zeros(len(roots), np.int64)
    number[free] = np.arange(1, len(free) + 1)
    return ChannelGroups({name: number[roots[ids]] for name, ids in made.items()}, len(free) + 1)


class _Union:
    """Disjoint sets of channels."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def new(self, count: int) -> Ids:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def tie(self, left: Ids, right: Ids) -> Ids:
        for a, b in zip(left, right, strict=True):
            low, high = sorted((self._find(int(a)), self._find(int(b))))
            self._parent[high] = low
        return left

    def roots(self) -> Ids:
        return np.array([self._find(index) for index in range(len(self._parent))], np.int64)

    def _find(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index
