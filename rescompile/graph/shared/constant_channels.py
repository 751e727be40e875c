"""Channels that are 0 everywhere, so that a convolution may pad a tensor whose zero is not stored as 0.

``full_range`` stores x >= 0 as x' = x - z, and a convolution that pads x' with zeros pads x with z. That does no harm
where the weights of every tap sum to zero over the input channels; then z cancels, inside and at the border:

    sum_c W[c, tap] = 0   ->   conv(x' padded with 0) = conv(x padded with 0) - z * conv(1 padded with 0)
                                                      = conv(x padded with 0)

So the tensor gets a few channels in which x is 0 everywhere. Their weights never count in the network, so they can
take whatever value makes the sums zero, in INT8 exactly. k such channels hold sums up to 127 k, so no tensor of C
channels needs more than C.

A residual add ties the channels of its inputs, so all tensors of a stage get the same number. An option A shortcut
takes the real channels only and pads up to the number that the next stage has.

The graph records the number of real channels (``metadata.CHANNELS``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from calibration.operators import operator
from calibration.scales import LEVELS
from rescompile.errors import GraphError
from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.links import QUANTIZER_OPS, WEIGHTED_OPS, made_by, weight_of
from rescompile.graph.shared.metadata import CHANNELS, drop_entries, real_channels, real_channels_in

_CHANNELS = 1
FEWEST_CHANNELS, CHANNEL_STEP = 16, 8
"""INT8 kernels take at least as many channels, or a multiple of the step."""


def add_constant_channels(graph: gs.Graph, readers: list[gs.Node]) -> None:
    """Give the tensor that each of ``readers`` pads the channels that it needs, with weights of 0; see ``balance``.

    ``graph`` is changed in place.

    Raises:
        GraphError: a reader that cannot, as ``can_read_constant_channels`` says.
    """
    groups = _Groups(graph)
    extra: dict[str, int] = {}
    for reader in readers:
        if reason := groups.reason_against(reader):
            raise GraphError(f"'{reader.name}' cannot read constant channels: {reason}")
        group = groups.of(reader.inputs[0])
        extra[group] = max(extra.get(group, 0), _needed(reader))
    extra = {group: count for group, count in extra.items() if count}
    counts = {group: _fitting(groups.channels[group] + count) for group, count in extra.items()}
    for tensor in groups.tensors(counts):
        graph.rescompile_metadata[CHANNELS + tensor.name] = str(groups.channels[groups.of(tensor)])
    _set_channels(graph, groups, counts)


def can_read_constant_channels(graph: gs.Graph) -> set[str]:
    """Names of the convolutions of ``graph``, Q/DQ or not, whose input may get constant channels.

    Their own channels are not grouped, and all tensors that have as many channels for the same reason are inner ones,
    which no operation touches that ``_Groups`` does not know.
    """
    groups = _Groups(graph)
    return {node.name for node in graph.nodes if node.op == "Conv" and groups.reason_against(node) is None}


def without_constant_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` without constant channels, for kernels that can pad with the stored value of zero.

    In this form convolutions that pad a tensor of full range lack what the channels added to their sums.
    """
    if not real_channels(model):
        return model
    graph = read(model)
    remove_constant_channels(graph)
    return write(graph)


def remove_constant_channels(graph: gs.Graph) -> None:
    """Undo ``add_constant_channels`` in place, whatever weights the channels have now."""
    groups, tensors = _Groups(graph), graph.tensors()
    recorded = real_channels_in(graph.rescompile_metadata)
    counts = {groups.of(tensors[name]): count for name, count in recorded.items() if name in tensors}
    _set_channels(graph, groups, counts)
    drop_entries(graph, CHANNELS)


def balance(graph: gs.Graph, reader: gs.Node) -> None:
    """Set the weights of the constant channels so that those of each tap of ``reader`` sum to zero."""
    real = real_channels_in(graph.rescompile_metadata).get(reader.inputs[0].name)
    if real is None:
        return
    values = weight_of(reader).values.copy()
    limit = LEVELS if values.dtype == np.int8 else np.inf
    missing = -_tap_sums(values[:, :real])
    for channel in range(real, values.shape[_CHANNELS]):
        taken = np.clip(missing, -limit, limit)
        values[:, channel] = taken
        missing = missing - taken
    _put_weight(reader, values)


def is_balanced(reader: gs.Node) -> bool:
    """Whether the weights of every tap of a convolution sum to zero: exactly in INT8, up to rounding in float."""
    values = weight_of(reader).values
    sums = _tap_sums(values)
    if values.dtype == np.int8:
        return not sums.any()
    largest = np.abs(values.astype(np.float64)).max(axis=_CHANNELS, initial=0.0)
    return bool((np.abs(sums) <= largest * float(np.finfo(values.dtype).eps) * values.shape[_CHANNELS]).all())


def _fitting(count: int) -> int:
    """``count`` channels or more, so that INT8 kernels take them: at least 16, or a multiple of 8."""
    return count if count >= FEWEST_CHANNELS else -(-count // CHANNEL_STEP) * CHANNEL_STEP


def _needed(reader: gs.Node) -> int:
    values = weight_of(reader).values
    largest = float(np.abs(_tap_sums(values)).max(initial=0.0))
    return int(np.ceil(largest / LEVELS)) if values.dtype == np.int8 else int(largest > 0)


def _tap_sums(values: NDArray[Any]) -> NDArray[Any]:
    """Sums [O, ...] over the input channels of weights [O, I, ...], exact where they are integers."""
    exact = values.astype(np.int64 if values.dtype == np.int8 else np.float64)
    sums: NDArray[Any] = exact.sum(axis=_CHANNELS)
    return sums


def _put_weight(node: gs.Node, values: NDArray[Any]) -> None:
    held = node.inputs[1]
    constant = gs.Constant(weight_of(node).name, values)
    if isinstance(held, gs.Constant):
        node.inputs[1] = constant
    else:
        held.inputs[0].inputs[0] = constant
        held.shape = values.shape


def _set_channels(graph: gs.Graph, groups: _Groups, counts: dict[str, int]) -> None:
    """Give the tensors of each group in ``counts`` that many channels; new weights are zeros."""
    for node in graph.nodes:
        if node.op not in (*WEIGHTED_OPS, "Slice", "Pad"):
            continue
        source, target = groups.of(node.inputs[0]), groups.of(node.outputs[0])
        if node.op in WEIGHTED_OPS:
            _resize_weighted(node, counts.get(source), counts.get(target))
        elif node.op == "Slice" and source in counts:
            _slice_channels(node, groups.channels[source])
        elif node.op == "Pad" and target in counts:
            pads = node.inputs[1].values.copy()
            pads[len(pads) // 2 + _CHANNELS] += counts[target] - groups.channels[target]
            node.inputs[1] = gs.Constant(node.inputs[1].name, pads)
    for tensor in groups.tensors(counts):
        tensor.shape = None  # shape inference finds it again


def _resize_weighted(node: gs.Node, inputs: int | None, outputs: int | None) -> None:
    values = weight_of(node).values
    if inputs is not None:
        values = _resized(values, _CHANNELS, inputs)
    if outputs is not None:
        values = _resized(values, 0, outputs)
        node.inputs[2] = gs.Constant(node.inputs[2].name, _resized(node.inputs[2].values, 0, outputs))
        if not isinstance(node.inputs[1], gs.Constant):
            dequantize = node.inputs[1].inputs[0]
            scale, zero = dequantize.inputs[1:3]
            # any scale will do for zeros, but it has to be positive, and large enough for the bias (``bias_range``)
            steps = _resized(scale.values, 0, outputs, fill=scale.values.max())
            dequantize.inputs[1] = gs.Constant(scale.name, steps)
            dequantize.inputs[2] = gs.Constant(zero.name, _resized(zero.values, 0, outputs))
    _put_weight(node, values)


def _resized(values: NDArray[Any], axis: int, size: int, fill: Any = 0) -> NDArray[Any]:
    missing = size - values.shape[axis]
    if missing <= 0:
        return np.ascontiguousarray(np.take(values, range(size), axis=axis))
    widths = [(0, missing if each == axis else 0) for each in range(values.ndim)]
    return np.pad(values, widths, constant_values=fill)


def _slice_channels(node: gs.Node, channels: int) -> None:
    """Let the Slice of an option A shortcut take the first ``channels``, which are the real ones."""
    starts, ends, axes, steps = (constant.values.tolist() for constant in node.inputs[1:5])
    if _CHANNELS in axes:
        at = axes.index(_CHANNELS)
        for entries in (starts, ends, axes, steps):
            del entries[at]
    else:
        for entries, value in ((starts, 0), (ends, channels), (axes, _CHANNELS), (steps, 1)):
            entries.append(value)
    for position, entries in enumerate((starts, ends, axes, steps), 1):
        old = node.inputs[position]
        node.inputs[position] = gs.Constant(old.name, np.array(entries, old.values.dtype))


class _Groups:
    """Tensors that must have the same number of channels; a group has the name of one of its tensors."""

    def __init__(self, graph: gs.Graph) -> None:
        self._parent: dict[str, str] = {}
        self._tensors = [tensor for tensor in graph.tensors().values() if isinstance(tensor, gs.Variable)]
        for node in graph.nodes:
            if _ties(node):
                for tensor in node.inputs:
                    if isinstance(tensor, gs.Variable):
                        self._parent[self.of(tensor)] = self.of(node.outputs[0])
        self.channels: dict[str, int] = {}
        """By group, where a weighted node reads or makes one of its tensors."""
        for node in graph.nodes:
            if node.op in WEIGHTED_OPS:
                outputs, inputs = weight_of(node).values.shape[:2]
                self.channels[self.of(node.inputs[0])] = inputs * node.attrs.get("group", 1)
                self.channels[self.of(node.outputs[0])] = outputs

        self._fixed: dict[str, str] = {}
        """By group, the operation or tensor that does not let it have more channels."""
        for tensor in (*graph.inputs, *graph.outputs):
            self._fixed[self.of(tensor)] = f"'{tensor.name}' is the network's own input or output"
        for node in graph.nodes:
            if not _takes_more_channels(node):
                for tensor in (*node.inputs, *node.outputs):
                    self._fixed.setdefault(self.of(tensor), f"'{node.name}' ({node.op}) does not take more")

    def reason_against(self, reader: gs.Node) -> str | None:
        """Why the input of the convolution ``reader`` cannot have more channels; None where it can."""
        if reader.attrs.get("group", 1) != 1:
            return "it is grouped"
        return self._fixed.get(self.of(reader.inputs[0]))

    def of(self, tensor: gs.Tensor) -> str:
        name = tensor.name
        while (above := self._parent.get(name, name)) != name:
            name = above
        return str(name)

    def tensors(self, groups: dict[str, int]) -> Iterator[gs.Variable]:
        return (tensor for tensor in self._tensors if self.of(tensor) in groups)


def _ties(node: gs.Node) -> bool:
    """Whether the output has the channels of every input, and channels of zeros stay so."""
    entry = operator(node.op)
    if node.op in QUANTIZER_OPS:
        return True
    inputs = [tensor for tensor in node.inputs if not tensor.is_empty()]
    if node.op == "Flatten":
        return made_by(node.inputs[0]) == "GlobalAveragePool"
    kept = entry.channels in ("kept", "tied") and entry.homogeneous and not node.op.startswith("Reduce")
    return kept and all(isinstance(tensor, gs.Variable) for tensor in inputs)


def _takes_more_channels(node: gs.Node) -> bool:
    if node.op in WEIGHTED_OPS:
        return bool(node.attrs.get("group", 1) == 1)
    if node.op == "Slice":  # of an option A shortcut, which leaves out pixels
        constant = len(node.inputs) == 5 and all(
            isinstance(tensor, gs.Constant) for tensor in node.inputs[1:]
        )
        return constant and _CHANNELS not in node.inputs[3].values.tolist()
    if node.op == "Pad":
        return len(node.inputs) < 4 and isinstance(node.inputs[1], gs.Constant)
    return _ties(node)
