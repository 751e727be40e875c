"""The shortcut without parameters, read off the graph: slices and pads, in whichever order an exporter wrote them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, cast

import numpy as np
import onnx

from rescompile.backends.triton.graph import MIXED, Array, Graph, attributes, refused
from rescompile.graph.shared.metadata import ZERO_POINT

MOVEMENT_OPS = ("Slice", "Pad")
Plane = tuple[int, int]


class Movement(NamedTuple):
    """Every ``stride``-th pixel of ``source``, between ``before`` and ``after`` channels of zeros."""

    source: str
    stride: int
    before: int
    after: int
    zero_point: int
    """What ``source`` stores its zero as."""
    nodes: tuple[onnx.NodeProto, ...]


def ends_movement(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether ``node`` is the last of its slices and pads."""
    if node.op_type not in MOVEMENT_OPS:
        return False
    after = graph.only_user(node.output[0])
    return after is None or after.op_type not in MOVEMENT_OPS


def read_movement(graph: Graph, end: onnx.NodeProto, plane_of: Callable[[str], Plane]) -> Movement:
    """All slices and pads that end in ``end``; values are moved, so the integers stay what they are.

    Args:
        graph: the deployable graph.
        end: see ``ends_movement``.
        plane_of: [H, W] of a tensor that an earlier step has made.

    Raises:
        BackendError: they do something else than a shortcut does.
    """
    path = [end]
    while (maker := graph.maker(path[0].input[0])) is not None and maker.op_type in MOVEMENT_OPS:
        path.insert(0, maker)
    source, scale = graph.behind(path[0].input[0])
    stride, before, after = [1, 1], 0, 0
    for node in path:
        if node.op_type == "Pad":
            front, back = _channels(graph, node, graph.offset_of(source))
            before, after = before + front, after + back
        else:
            steps = _steps(graph, node, plane_of(source))
            stride = [stride[0] * steps[0], stride[1] * steps[1]]
    if stride[0] != stride[1]:
        raise refused(end, "a shortcut takes pixels at one stride in both axes")
    scale_after = graph.scale_of(end.output[0])
    if (scale is None) != (scale_after is None):
        raise refused(end, f"a shortcut reads and writes integers, or neither; {MIXED}")
    if scale_after != scale:
        raise refused(end, "a shortcut that moves values has the scale of what it reads")
    zero_point = ZERO_POINT if graph.offset_of(source) else 0
    return Movement(source, stride[0], before, after, zero_point, tuple(path))


def _channels(graph: Graph, pad: onnx.NodeProto, offset: float) -> tuple[int, int]:
    """Channels that a Pad adds before and after, to a tensor whose zero is -``offset``."""
    pads = graph.constant(pad.input[1])
    value = graph.constant(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else None
    padded_with = 0.0 if value is None else float(value.reshape(()))
    zeros = attributes(pad).get("mode", b"constant") == b"constant" and np.isclose(padded_with, -offset)
    if pads is None or len(pads) != 8 or not zeros or pads[[0, 2, 3, 4, 6, 7]].any() or pads.min() < 0:
        raise refused(pad, "a shortcut is padded with channels of zeros")
    return int(pads[1]), int(pads[5])


def _steps(graph: Graph, node: onnx.NodeProto, plane: Plane) -> list[int]:
    """Strides of a Slice in height and width."""
    values = [graph.constant(name) for name in node.input[1:5]]
    if len(values) < 4 or any(value is None for value in values):
        raise refused(node, "a shortcut is sliced by constants")
    starts, ends, axes, steps = (cast("Array", value).tolist() for value in values)
    stride = [1, 1]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis not in {2, 3} or start != 0 or step < 1 or end < plane[axis - 2]:
            raise refused(node, "a shortcut takes every n-th pixel of the whole plane")
        stride[axis - 2] = int(step)
    return stride
