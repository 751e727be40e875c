"""Preprocessing in the graph: the nodes between its input and the first convolution or its quantizer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rescompile.backends.triton.lowering.graph import Array, Graph, constant, refused
from rescompile.backends.triton.steps import FACTOR, OFFSET, UNDO_FACTOR, UNDO_OFFSET, Rest
from rescompile.errors import BackendError


class Preprocessing(NamedTuple):
    """Operations on an image before the first convolution."""

    rest: Rest
    """Type that every step is rounded to."""
    normalized: bool
    margin: int
    """Zeros around the normalized image."""
    undone: bool
    """Whether it is multiplied and added to once more, which makes it pixels again."""
    weights: dict[str, Array]
    """fp32 [C], by the names of ``steps``."""
    nodes: tuple[gs.Node, ...]


def read_preprocessing(graph: Graph, tensor: gs.Tensor) -> Preprocessing:
    """The preprocessing that makes ``tensor``.

    Raises:
        BackendError: the nodes do something else than ``graph.preprocess`` and ``graph.pixels`` write.
    """
    path = graph.image_path()
    if tensor is not (path[-1].outputs[0] if path else graph.input):
        raise BackendError(f"the Triton engine finds no way from the graph's input to '{tensor.name}'")
    casts = [node.attrs["to"] for node in path if node.op == "Cast"]
    rest: Rest = "float16" if onnx.TensorProto.FLOAT16 in casts else "float32"
    steps, weights = [node for node in path if node.op != "Cast"], dict[str, Array]()
    normalized = bool(steps) and steps[0].op == "Transpose"
    if normalized:
        ops = [node.op for node in steps[:3]]
        if ops != ["Transpose", "Mul", "Add"] or steps[0].attrs["perm"] != [0, 3, 1, 2]:
            raise refused(
                steps[0], "pixels must be transposed, multiplied and added to, as --input uint8-nhwc does"
            )
        weights[FACTOR], weights[OFFSET] = _vector(steps[1]), _vector(steps[2])
        steps = steps[3:]
    margin, undone = 0, bool(steps)
    if undone:
        if steps[0].op == "Pad":
            margin, steps = _margin(steps[0]), steps[1:]
        if [node.op for node in steps] not in (["Mul", "Add"], ["Add"]):
            raise refused(
                steps[0] if steps else path[-1], "an image may only be padded, multiplied and added to"
            )
        weights[UNDO_OFFSET] = _vector(steps[-1])
        # without a factor here, the normalization took it in
        weights[UNDO_FACTOR] = _vector(steps[0]) if len(steps) > 1 else np.ones_like(weights[UNDO_OFFSET])
    return Preprocessing(rest, normalized, margin, undone, weights, tuple(path))


def _vector(node: gs.Node) -> Array:
    """[C] of the constant [1, C, 1, 1] that ``node`` multiplies with or adds."""
    values = constant(node.inputs[1])
    if values is None:
        raise refused(node, "an image must be normalized by constants")
    if values.shape[2:] not in ((), (1, 1)):
        raise refused(
            node,
            "one number must be subtracted from each channel, not a mean image; pass --input float32-nchw",
        )
    return values.astype(np.float32).reshape(-1)


def _margin(pad: gs.Node) -> int:
    """Number of zeros that ``pad`` puts on every side of the image."""
    pads = constant(pad.inputs[1])
    if pads is None or len(pad.inputs) > 2 or len(pads) != 8 or pads[[0, 1, 4, 5]].any():
        raise refused(pad, "an image must be padded with zeros, on its four sides")
    sides = set(pads[[2, 3, 6, 7]].tolist())
    if len(sides) > 1 or min(sides) < 0:
        raise refused(pad, "an image must be padded by the same number on every side")
    return int(sides.pop())
