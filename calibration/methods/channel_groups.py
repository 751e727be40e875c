"""Groups of channels that must be scaled together.

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
from calibration.network import output_first, read_nodes
from calibration.operators import WEIGHTED_OPS

if TYPE_CHECKING:
    import onnx

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
    image, logits = model.graph.input[0], model.graph.output[0]
    sets = _DisjointSets()
    ids = {image.name: sets.new(image.type.tensor_type.shape.dim[1].dim_value)}
    for node in read_nodes(model):
        first = node.inputs[0]
        if node.op in WEIGHTED_OPS:
            weight = numpy_helper.to_array(constants[node.inputs[1]])
            ids[node.output] = sets.new(len(output_first(node, weight)))
        elif node.op == "Add":
            ids[node.output] = sets.tie(ids[first], ids[node.inputs[1]])
        elif node.op == "Pad":
            pads = numpy_helper.to_array(constants[node.inputs[1]])
            before, after = int(pads[1]), int(pads[len(pads) // 2 + 1])
            ids[node.output] = np.concatenate([sets.new(before), ids[first], sets.new(after)])
        elif node.op in _SAME_CHANNELS:
            ids[node.output] = ids[first]
        else:
            raise CalibrationError(
                f"'{node.name}' is a {node.op}, whose channels cannot be followed: use --effort fast"
            )
    roots = sets.roots()
    fixed = np.unique(roots[np.concatenate([ids[image.name], ids[logits.name]])])
    free = np.setdiff1d(np.unique(roots), fixed)
    number = np.zeros(len(roots), np.int64)
    number[free] = np.arange(1, len(free) + 1)
    return ChannelGroups({name: number[roots[entry]] for name, entry in ids.items()}, len(free) + 1)


class _DisjointSets:
    """Sets of channels, each with the lowest channel as its root."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def new(self, count: int) -> Ids:
        """``count`` channels, each in a set of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def tie(self, left: Ids, right: Ids) -> Ids:
        """Join the sets of each pair of channels; returns ``left``."""
        for a, b in zip(left, right, strict=True):
            low, high = sorted((self._find(int(a)), self._find(int(b))))
            self._parent[high] = low
        return left

    def roots(self) -> Ids:
        """Root of every channel."""
        return np.array([self._find(index) for index in range(len(self._parent))], np.int64)

    def _find(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index
