"""The two ends of an exported graph: how it takes its images, and what it does to its answers last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.errors import GraphError
from rescompile.graph.shared.editing import reconnect
from rescompile.graph.shared.links import consumers

_ENDINGS = ("Softmax", "LogSoftmax", "Sigmoid")
_CHOICES = ("ArgMax", "TopK", "NonMaxSuppression")


@dataclass(frozen=True)
class Intake:
    """How the user's file takes its images."""

    dtype: np.dtype[np.generic]
    nhwc: bool

    def of(self, images: NDArray[np.float32]) -> NDArray[np.generic]:
        """float32 ``images`` [N, C, H, W] in the form of the user's file."""
        arranged = images.transpose(0, 2, 3, 1) if self.nhwc else images
        return np.ascontiguousarray(arranged.astype(self.dtype))


def take_input(graph: gs.Graph) -> Intake:
    """Let ``graph`` take float32 [N, C, H, W]: casts and the transposition of its image are taken off."""
    image = graph.inputs[0]
    dtype, nhwc = np.dtype(image.dtype), False
    while True:
        readers = consumers(image)
        moves = [
            node for node in readers if node.op == "Transpose" and node.attrs.get("perm") == [0, 3, 1, 2]
        ]
        if len(readers) != 1 or not (readers[0].op == "Cast" or (moves and not nhwc)):
            break
        nhwc = nhwc or bool(moves)
        changed = readers[0].outputs[0]
        reconnect(changed.outputs, changed, image)
        readers[0].outputs.clear()
        readers[0].inputs.clear()
    if nhwc:
        batch, height, width, channels = image.shape
        image.shape = [batch, channels, height, width]
    image.dtype = np.float32
    return Intake(dtype, nhwc)


def normalized_range(graph: gs.Graph, intake: Intake) -> float | None:
    """The largest value of an image that ``graph`` normalizes itself: 1 or 255; None where it does not.

    The graph multiplies and adds constants before anything else: x * factor + offset. In the file's units, the mean is
    -offset / factor and the deviation 1 / factor; both tell bytes from numbers up to 1.
    """
    factor, offset, tensor, found = np.ones(1), np.zeros(1), graph.inputs[0], False
    while True:
        readers = consumers(tensor)
        step = _affine(readers[0], tensor) if len(readers) == 1 else None
        if step is None:
            break
        factor, offset, found = factor * step[0], offset * step[0] + step[1], True
        tensor = readers[0].outputs[0]
    if intake.dtype.kind in "iu":
        return 255.0
    if not found:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        spread, mean = np.abs(1 / factor), np.abs(offset / factor)
    return 255.0 if max(spread.max(), mean.max()) > 2 else 1.0


def _affine(node: gs.Node, tensor: gs.Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Factor and offset by channel of a node that does this to ``tensor``; None for all other nodes."""
    if node.op not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    others = [entry for entry in node.inputs if entry is not tensor]
    if len(others) != 1 or not isinstance(others[0], gs.Constant) or not _by_channel(others[0].values):
        return None
    value = others[0].values.astype(np.float64).ravel()
    one, zero = np.ones_like(value), np.zeros_like(value)
    if node.op == "Add":
        return one, value
    if node.op == "Mul":
        return value, zero
    if node.inputs[0] is not tensor:
        return (-one, value) if node.op == "Sub" else None
    return (one, -value) if node.op == "Sub" else (one / value, zero)


def _by_channel(values: NDArray[np.generic]) -> bool:
    shape = (1,) * (4 - values.ndim) + values.shape
    return values.ndim <= 4 and shape[0] == shape[2] == shape[3] == 1


def take_off_endings(graph: gs.Graph) -> tuple[tuple[str | None, ...], tuple[str, ...]]:
    """Take Softmax, LogSoftmax or Sigmoid off each output: its operator by output, and a note for each kind.

    Raises:
        GraphError: an output is a choice among the answers and not the answers themselves.
    """
    endings: list[str | None] = []
    outputs: list[gs.Tensor] = []
    for output in graph.outputs:
        last = output.inputs[0] if output.inputs else None
        if last is None:
            raise GraphError(
                f"the output '{output.name}' is an input of the graph: there is nothing to build"
            )
        if last.op in _CHOICES:
            raise GraphError(
                f"the graph ends in '{last.name}' ({last.op}), so it answers with a choice only, which cannot be "
                "judged: export the network without it; the engine's runtime gives the class too"
            )
        before = last.inputs[0]
        taken = last.op in _ENDINGS and not consumers(output) and before not in graph.outputs
        endings.append(last.op if taken else None)
        outputs.append(before if taken else output)
    graph.outputs = outputs
    kinds = [kind for kind in _ENDINGS if kind in endings]
    notes = tuple(
        f"the graph ends in {kind}, which was taken off: the engine's outputs are the values in front of it"
        for kind in kinds
    )
    return tuple(endings), notes


def with_endings(model: onnx.ModelProto, endings: Sequence[str | None]) -> onnx.ModelProto:
    """``model`` with the ``endings`` that ``take_off_endings`` took off behind its outputs."""
    if not any(endings):
        return model
    ended = onnx.ModelProto()
    ended.CopyFrom(model)
    for output, ending in zip(ended.graph.output, endings, strict=True):
        if ending is not None:
            before, output.name = output.name, f"{output.name}.ended"
            node = onnx.helper.make_node(ending, [before], [output.name])
            if ending != "Sigmoid":
                node.attribute.append(onnx.helper.make_attribute("axis", 1))
            ended.graph.node.append(node)
    return ended
