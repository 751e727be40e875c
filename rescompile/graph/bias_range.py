"""Weight scales under which every bias fits into int32, counted in steps of activation scale times weight scale.

ONNX Runtime and others that compute in integers store a bias as int32. A channel whose weights are nearly zero has a
tiny scale, and an ordinary bias is then more than 2**31 of its steps: it saturates there, and the channel is wrong
without a message. A coarser scale for such a channel costs nothing, because a step of ``|bias| * 2**-30`` is finer than
what float32 keeps of a sum with that bias.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from calibration.scales import MAX_SCALE, dequantize, scales_of
from calibration.scales import quantize as to_int8
from rescompile.graph.full_range import fold_zero_points
from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.links import WEIGHTED_OPS, made_by

_STEPS = 2.0**30
"""Half of int32, because backends add up products on top of the bias."""


def fold_within_int32(model: onnx.ModelProto) -> onnx.ModelProto:
    """``full_range.fold_zero_points`` of ``model``, with coarser weight scales where a bias needs them.

    Biases only have their final values after folding, so a graph that needs other scales is folded again with them.

    Raises:
        GraphError: as ``fold_zero_points``.
    """
    folded = fold_zero_points(model)
    least = _least_scales(read(folded))
    if not least:
        return folded
    graph = read(model)
    for node in graph.nodes:
        if node.name in least:
            _coarsen(node, least)
    return fold_zero_points(write(graph))


def _least_scales(graph: gs.Graph) -> dict[str, NDArray[np.float32]]:
    """By name of a node with a bias beyond the range, the smallest weight scale [K] of each output channel."""
    found = {}
    for node in graph.nodes:
        if node.op not in WEIGHTED_OPS or any(
            made_by(each) != "DequantizeLinear" for each in node.inputs[:2]
        ):
            continue
        step = float(node.inputs[0].inputs[0].inputs[1].values)
        # a channel that no scale of FP16 serves keeps the largest
        least = scales_of(
            np.minimum(np.abs(node.inputs[2].values.astype(np.float64)) / (_STEPS * step), MAX_SCALE), 1
        )
        if (least > node.inputs[1].inputs[0].inputs[1].values).any():
            found[node.name] = least
    return found


def _coarsen(node: gs.Node, least: Mapping[str, NDArray[np.float32]]) -> None:
    """Raise the weight scales of ``node`` to those in ``least``, without the constant channels at the end."""
    dequantized = node.inputs[1].inputs[0]
    integers, scales = (each.values for each in dequantized.inputs[:2])
    coarser = np.maximum(scales, least[node.name][: len(scales)])
    values = to_int8(dequantize(integers, scales), coarser)
    dequantized.inputs[0] = gs.Constant(dequantized.inputs[0].name, values)
    dequantized.inputs[1] = gs.Constant(dequantized.inputs[1].name, coarser)
