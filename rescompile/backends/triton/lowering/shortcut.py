"""The shortcut without parameters, read from its slices and pads in whichever order an exporter wrote them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import onnx_graphsurgeon as gs

from rescompile.backends.triton.lowering.graph import (
    MIXED,
    Array,
    Graph,
    behind_quantizer,
    constant,
    producer,
    refused,
    scale_of,
)
from rescompile.graph.shared.links import MOVEMENT_OPS
from rescompile.graph.shared.metadata import ZERO_POINT

Plane = tuple[int, int]
"""Height and width."""


class Shortcut(NamedTuple):
    """Takes every ``stride``-th pixel of ``source``, between ``before`` and ``after`` channels of zeros."""

    source: gs.Tensor
    stride: int
    before: int
    after: int
    zero_point: int
    """The integer that stands for zero in ``source``."""
    nodes: tuple[gs.Node, ...]


def ends_shortcut(graph: Graph, node: gs.Node) -> bool:
    """Whether ``node`` is the last slice or pad of a shortcut."""
    if node.op not in MOVEMENT_OPS:
        return False
    after = graph.only_reader(node.outputs[0])
    return after is None or after.op not in MOVEMENT_OPS


def read_shortcut(graph: Graph, end: gs.Node, plane_of: Callable[[gs.Tensor], Plane]) -> Shortcut:
    """The shortcut whose last node is ``end``; it moves values, so their integers stay the same.

    Args:
        graph: the deployable graph.
        end: see ``ends_shortcut``.
        plane_of: height and width of a tensor that an earlier step has made.

    Raises:
        BackendError: the nodes do something else than a shortcut does.
    """
    path = [end]
    while (maker := producer(path[0].inputs[0])) is not None and maker.op in MOVEMENT_OPS:
        path.insert(0, maker)
    source, scale = behind_quantizer(path[0].inputs[0])
    stride, before, after = [1, 1], 0, 0
    for node in path:
        if node.op == "Pad":
            front, back = _channels(node, graph.offset_of(source))
            before, after = before + front, after + back
        else:
            steps = _steps(node, plane_of(source))
            stride = [stride[0] * steps[0], stride[1] * steps[1]]
    if stride[0] != stride[1]:
        raise refused(end, "a shortcut must have the same stride in both axes")
    scale_after = scale_of(end.outputs[0])
    if (scale is None) != (scale_after is None):
        raise refused(end, f"a shortcut's input and output must both be int8, or neither; {MIXED}")
    if scale_after != scale:
        raise refused(end, "a shortcut that only moves values must keep the scale of its input")
    zero_point = ZERO_POINT if graph.offset_of(source) else 0
    return Shortcut(source, stride[0], before, after, zero_point, tuple(path))


def _channels(pad: gs.Node, offset: float) -> tuple[int, int]:
    """Channels that a Pad adds before and after, to a tensor whose zero is -``offset``."""
    pads = constant(pad.inputs[1])
    value = constant(pad.inputs[2]) if len(pad.inputs) > 2 else None
    padded_with = 0.0 if value is None else float(value.reshape(()))
    zeros = pad.attrs.get("mode", "constant") == "constant" and np.isclose(padded_with, -offset)
    if pads is None or len(pads) != 8 or not zeros or pads[[0, 2, 3, 4, 6, 7]].any() or pads.min() < 0:
        raise refused(pad, "a shortcut must be padded with channels of zeros")
    return int(pads[1]), int(pads[5])


def _steps(node: gs.Node, plane: Plane) -> list[int]:
    """Strides of a Slice in height and width."""
    values = [constant(tensor) for tensor in node.inputs[1:5]]
    if len(values) < 4 or any(value is None for value in values):
        raise refused(node, "a shortcut must be sliced by constants")
    starts, ends, axes, steps = (cast("Array", value).tolist() for value in values)
    stride = [1, 1]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis not in {2, 3} or start != 0 or step < 1 or end < plane[axis - 2]:
            raise refused(node, "a shortcut must take every n-th pixel of the whole plane")
        stride[axis - 2] = int(step)
    return stride
