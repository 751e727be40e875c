"""The way from a graph's input to what its first convolution reads, or what that one's quantizer does."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from rescompile.backends.triton.lowering.graph import Array, Graph, attributes, refused
from rescompile.backends.triton.steps import FACTOR, OFFSET, UNDO_FACTOR, UNDO_OFFSET, Rest
from rescompile.errors import BackendError


class ImagePath(NamedTuple):
    """What is done to an image."""

    rest: Rest
    """What every step is rounded to."""
    normalized: bool
    margin: int
    """Zeros around the normalized image."""
    undone: bool
    """Whether it is multiplied and added to once more, which makes pixels of it."""
    weights: dict[str, Array]
    """fp32 [C] by name, as ``steps`` has them."""
    nodes: tuple[onnx.NodeProto, ...]


def read_image(graph: Graph, tensor: str) -> ImagePath:
    """All nodes from the graph's input to ``tensor``.

    Raises:
        BackendError: they do something else than ``graph.preprocess`` and ``graph.pixels`` write.
    """
    path = graph.image_path()
    if tensor != (path[-1].output[0] if path else graph.input.name):
        raise BackendError(f"the Triton engine finds no way from the graph's input to '{tensor}'")
    casts = [attributes(node)["to"] for node in path if node.op_type == "Cast"]
    rest: Rest = "float16" if onnx.TensorProto.FLOAT16 in casts else "float32"
    steps, weights = [node for node in path if node.op_type != "Cast"], dict[str, Array]()
    normalized = bool(steps) and steps[0].op_type == "Transpose"
    if normalized:
        ops, layout = [node.op_type for node in steps[:3]], attributes(steps[0])["perm"]
        if (ops, layout) != (["Transpose", "Mul", "Add"], [0, 3, 1, 2]):
            raise refused(
                steps[0], "pixels are transposed, multiplied and added to, as --input uint8-nhwc does"
            )
        weights[FACTOR], weights[OFFSET] = (_vector(graph, node) for node in steps[1:3])
        steps = steps[3:]
    margin, undone = 0, bool(steps)
    if undone:
        if steps[0].op_type == "Pad":
            margin, steps = _margin(graph, steps[0]), steps[1:]
        if [node.op_type for node in steps] not in (["Mul", "Add"], ["Add"]):
            raise refused(steps[0] if steps else path[-1], "an image is padded, multiplied and added to")
        weights[UNDO_OFFSET] = _vector(graph, steps[-1])
        with_factor = len(steps) > 1  # without one the way here took it in
        weights[UNDO_FACTOR] = _vector(graph, steps[0]) if with_factor else np.ones_like(weights[UNDO_OFFSET])
    return ImagePath(rest, normalized, margin, undone, weights, tuple(path))


def _vector(graph: Graph, node: onnx.NodeProto) -> Array:
    """[C] of the constant [1, C, 1, 1] that ``node`` multiplies with or adds."""
    values = graph.constant(node.input[1])
    if values is None:
        raise refused(node, "an image is normalized by constants")
    return values.astype(np.float32).reshape(-1)


def _margin(graph: Graph, pad: onnx.NodeProto) -> int:
    """How many zeros ``pad`` puts on every side of the image."""
    pads = graph.constant(pad.input[1])
    if pads is None or len(pad.input) > 2 or len(pads) != 8 or pads[[0, 1, 4, 5]].any():
        raise refused(pad, "an image is padded with zeros, on its four sides")
    sides = set(pads[[2, 3, 6, 7]].tolist())
    if len(sides) > 1 or min(sides) < 0:
        raise refused(pad, "an image is padded by the same number on every side")
    return int(sides.pop())
