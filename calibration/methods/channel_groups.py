"""Groups of channels that must be scaled together.

Dividing a channel by a positive factor where it is made and multiplying where it is used changes nothing, as long as
everything between is homogeneous: max(x / f, 0) = max(x, 0) / f. An addition ties the channels that it adds, so all
blocks of a stage share their factors; a slice, pad or concatenation carries them over to other positions; a batch norm
that stays takes any factor in and any out. What is not homogeneous (a sigmoid, ReLU6), or not known, pins its channels:
they keep the factor 1. So does the product of two tensors, unless one of them is pinned, as a gate is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.network import FLOAT_TYPES, Node, groups_of, output_first, read_nodes
from calibration.onnx_session import without_weights
from calibration.operators import operator

if TYPE_CHECKING:
    import onnx

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class ChannelGroups:
    """The group of every channel of every tensor; group 0 keeps the factor 1 (images, logits, what is pinned)."""

    of: dict[str, Ids]
    """Tensor to group indices [C]."""
    count: int
    """Number of groups, group 0 included."""
    pinning: tuple[str, ...] = ()
    """Operators inside that pin channels, in the order of execution."""

    def free(self, name: str) -> bool:
        """Whether any channel of a tensor may have a factor other than 1."""
        return bool(self.of[name].any())


def channel_groups(model: onnx.ModelProto) -> ChannelGroups:
    """Groups of a folded fp32 graph."""
    found = _Walk(model)
    for node in read_nodes(model):
        found.visit(node)
    ends = [model.graph.input[0].name, *(entry.name for entry in model.graph.output)]
    roots = found.sets.roots()
    fixed = np.unique(roots[np.concatenate([[0], *(found.ids[name] for name in ends if name in found.ids)])])
    free = np.setdiff1d(np.unique(roots), fixed)
    number = np.zeros(len(roots), np.int64)
    number[free] = np.arange(1, len(free) + 1)
    return ChannelGroups(
        {name: number[roots[entry]] for name, entry in found.ids.items()}, len(free) + 1, tuple(found.pinning)
    )


class _Walk:
    """Follows the channels through the nodes in the order of execution. Channel 0 of ``sets`` is the pinned one."""

    def __init__(self, model: onnx.ModelProto) -> None:
        from onnx import numpy_helper

        self.constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
        self.sets = _DisjointSets()
        self.sets.new(1)
        self._parameters = set(self.constants)
        self._shapes = _shapes(model)
        self._uses = Counter(name for node in model.graph.node for name in node.input)
        image = model.graph.input[0].name
        self.ids: dict[str, Ids] = {image: self.sets.new(self._channels(image))}
        """The groups of every tensor that depends on the input."""
        self.pinning: dict[str, None] = {}

    def visit(self, node: Node) -> None:
        """Find the channels of the node's output, or its value if it depends on sizes alone."""
        reading = [name for name in node.inputs if name in self.ids]
        if reading and node.op != "Shape":
            found = self._follow(node, reading)
            self.ids[node.output] = self._pin(node, reading) if found is None else found
        else:
            self._compute(node)

    def _compute(self, node: Node) -> None:
        """Take what does not depend on the image's values into ``constants``, for one image."""
        import torch

        from calibration.execution.operations import OPERATIONS

        shape = self._shapes.get(node.inputs[0]) if node.op == "Shape" else None
        if shape is not None and all(shape):
            sizes = np.array(shape[node.attributes.get("start", 0) : node.attributes.get("end", len(shape))])
            self.constants[node.output] = sizes
        elif node.op in OPERATIONS and all(name in self.constants for name in node.inputs if name):
            inputs = [
                torch.from_numpy(np.array(self.constants[name])) if name else None for name in node.inputs
            ]
            self.constants[node.output] = OPERATIONS[node.op](node.attributes, *inputs).numpy()

    def _follow(self, node: Node, reading: Sequence[str]) -> Ids | None:
        """The output's channels; None where nothing is known about them."""
        entry, rest = operator(node.op), [name for name in node.inputs if name and name not in self.ids]
        if entry.channels in ("made", "normalized"):
            return self._parametrized(node) if self._owns(rest) else None
        if entry.channels == "scaled":
            return self._scaled(node, reading, rest)
        if not entry.homogeneous:
            return None
        return self._moved(node) if entry.channels == "moved" else self._kept(node, reading, rest)

    def _kept(self, node: Node, reading: Sequence[str], rest: Sequence[str]) -> Ids | None:
        """The input's channels, tied to those of the other inputs."""
        channels = [self.ids[name] for name in reading]
        same = len({len(each) for each in channels}) == 1 and self._same_rank(reading)
        if not same or len(channels[0]) != self._channels(node.output) or self._crosses_channels(node):
            return None
        if operator(node.op).channels == "kept" and len(reading) > 1:
            return None  # a slope that is computed
        if operator(node.op).channels == "tied" and rest:
            return None  # a constant is not scaled along with the rest
        for each in channels[1:]:
            self.sets.tie(channels[0], each)
        return channels[0]

    def _parametrized(self, node: Node) -> Ids | None:
        """New channels behind weights or a batch norm, whose parameters take any factor."""
        parameters = [self.constants[name] for name in node.inputs[1:] if name]
        inputs = self.ids[node.inputs[0]]
        if len(inputs) == 1 and self.sets.pinned(inputs):  # of a shape that was not known
            read = len(parameters[0])
            if operator(node.op).channels == "made":
                read = output_first(node, parameters[0]).shape[1] * groups_of(node)
            inputs = self.ids[node.inputs[0]] = np.zeros(read, np.int64)
        if operator(node.op).channels == "normalized":
            fits = len(parameters) == 4 and all(len(values) == len(inputs) for values in parameters)
            return self.sets.new(len(inputs)) if fits else None
        weight = output_first(node, parameters[0])
        fits = weight.shape[1] * groups_of(node) == len(inputs) and not node.attributes.get("transA")
        fits = fits and all(bias.shape == (len(weight),) for bias in parameters[1:])
        return self.sets.new(len(weight)) if fits else None

    def _scaled(self, node: Node, reading: Sequence[str], rest: Sequence[str]) -> Ids | None:
        if node.op == "Div" and node.inputs[0] not in reading:
            return None
        if len(reading) == 1 and len(rest) == 1:
            found = self.ids[reading[0]]
            return found if len(found) == self._channels(node.output) else None
        if rest or not self._same_rank(reading):
            return None
        left, right = (self.ids[name] for name in node.inputs)
        kept: Ids
        for kept, other in ((left, right), *(((right, left),) if node.op == "Mul" else ())):
            if self.sets.pinned(other) and len(kept) == self._channels(node.output):
                return kept
        return None

    def _moved(self, node: Node) -> Ids | None:
        """Channels behind an operation that moves values: it is executed on the numbers of the channels."""
        import torch

        from calibration.execution.attributes import Unsupported
        from calibration.execution.operations import OPERATIONS

        arguments = [self._numbered(name) if name else None for name in node.inputs]
        if any(argument is None for name, argument in zip(node.inputs, arguments, strict=True) if name):
            return None
        if node.op == "Pad":
            if self._pads_with_more_than_zeros(node):
                return None
            arguments[2:3] = [torch.tensor(-1)]
        try:
            moved = OPERATIONS[node.op](node.attributes, *arguments).numpy()
        except (Unsupported, RuntimeError, ValueError, IndexError):
            return None
        if moved.ndim < 2 or moved.shape[0] != 1:
            return None
        rows = moved.reshape(moved.shape[1], -1)
        highest = rows.max(axis=1)
        lowest = np.where(rows < 0, highest[:, None], rows).min(axis=1)
        if (highest != lowest).any():
            return None
        new = highest < 0  # nothing but padding
        highest[new] = self.sets.new(int(new.sum()))
        found: Ids = highest
        return found

    def _numbered(self, name: str) -> object | None:
        """The tensor with the number of its channel in place of each value; constants among data are pinned."""
        import torch

        if name in self.ids:
            shape = self._shapes.get(name)
            if shape is None or not all(shape[1:]) or shape[1] != len(self.ids[name]):
                return None
            ids = self.ids[name].reshape(1, -1, *[1] * (len(shape) - 2))
            return torch.from_numpy(np.broadcast_to(ids, (1, *shape[1:])).copy())
        if name in self.constants:
            values = self.constants[name]
            return torch.from_numpy(
                np.array(values if values.dtype.kind in "iu" else np.zeros(values.shape, np.int64))
            )
        return None

    def _pads_with_more_than_zeros(self, node: Node) -> bool:
        if node.attributes.get("mode", b"constant") != b"constant":
            return False
        value = self.constants.get(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1)
        return value is None or bool(np.any(value))

    def _crosses_channels(self, node: Node) -> bool:
        """Whether this reduction mixes channels, or this cast rounds: then channels cannot be scaled separately."""
        if node.op == "Cast":
            return node.attributes["to"] not in FLOAT_TYPES
        if not node.op.startswith("Reduce"):
            return False
        axes = node.attributes.get("axes")
        if axes is None and len(node.inputs) > 1:
            axes = self.constants.get(node.inputs[1])
        shape = self._shapes.get(node.inputs[0])
        if axes is None or shape is None:
            return True
        return any(int(axis) % len(shape) < 2 for axis in axes)

    def _pin(self, node: Node, reading: Sequence[str]) -> Ids:
        self.pinning[node.op] = None
        for name in reading:
            self.sets.tie(np.zeros(len(self.ids[name]), np.int64), self.ids[name])
        return np.zeros(self._channels(node.output), np.int64)

    def _owns(self, parameters: Sequence[str]) -> bool:
        """Whether all ``parameters`` are constants of one node alone, so that they may be changed."""
        return all(name in self._parameters and self._uses[name] == 1 for name in parameters)

    def _channels(self, name: str) -> int:
        shape = self._shapes.get(name)
        return shape[1] if shape and len(shape) > 1 and shape[1] else 1

    def _same_rank(self, names: Sequence[str]) -> bool:
        shapes = [self._shapes.get(name) for name in names]
        return len(names) == 1 or len({len(shape) if shape else -1 for shape in shapes} | {-1}) == 2


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name for one image; 0 for a length that is not known."""
    import onnx

    single, _ = without_weights(model)
    del single.graph.value_info[:]
    for output in single.graph.output:
        output.type.Clear()
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    graph = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    return {
        entry.name: tuple(side.dim_value for side in entry.type.tensor_type.shape.dim)
        for entry in (*graph.input, *graph.value_info, *graph.output)
        if entry.type.tensor_type.HasField("shape")
    }


class _DisjointSets:
    """Sets of channels, each with the lowest channel as its root."""

    def __init__(self) -> None:
        self._parent: list[int] = []

    def new(self, count: int) -> Ids:
        """``count`` channels, each in a set of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def tie(self, left: Ids, right: Ids) -> None:
        """Join the sets of each pair of channels."""
        for a, b in zip(left, right, strict=True):
            low, high = sorted((self._find(int(a)), self._find(int(b))))
            self._parent[high] = low

    def pinned(self, ids: Ids) -> bool:
        """Whether all of ``ids`` are in the set of channel 0."""
        return all(self._find(int(each)) == 0 for each in ids)

    def roots(self) -> Ids:
        """Root of every channel."""
        return np.array([self._find(index) for index in range(len(self._parent))], np.int64)

    def _find(self, index: int) -> int:
        while self._parent[index] != index:
            self._parent[index] = self._parent[self._parent[index]]
            index = self._parent[index]
        return index
