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
from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.links import WEIGHTED_OPS, made_by

_STEPS = 2.0**30
"""Half of int32, because backends add up products on top of the bias."""


def scales_for_int32(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """By name of a node with a bias beyond the range, the smallest weight scale [K] of each output channel.

    ``model`` is the INT8 graph with its final biases, zero points folded in.
    """
    found = {}
    for node in read(model).nodes:
        quantized = [made_by(each) == "DequantizeLinear" for each in node.inputs[:2]]
        if node.op not in WEIGHTED_OPS or not all(quantized):
            continue
        step = float(node.inputs[0].inputs[0].inputs[1].values)
        wanted = np.abs(node.inputs[2].values.astype(np.float64)) / (_STEPS * step)
        least = scales_of(np.minimum(wanted, MAX_SCALE), 1)  # no scale of FP16 is larger
        if (least > node.inputs[1].inputs[0].inputs[1].values).any():
            found[node.name] = least
    return found


def with_coarser_weights(model: onnx.ModelProto, least: Mapping[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """``model`` with weight scales of at least ``least`` [K] by node name; zero points need not be folded yet.

    ``least`` may have more channels at the end than ``model``: constant ones, which folding adds.
    """
    graph = read(model)
    for node in graph.nodes:
        if node.name not in least:
            continue
        dequantized = node.inputs[1].inputs[0]
        integers, scales = (each.values for each in dequantized.inputs[:2])
        coarser = np.maximum(scales, least[node.name][: len(scales)])
        values = to_int8(dequantize(integers, scales), coarser)
        dequantized.inputs[0] = gs.Constant(dequantized.inputs[0].name, values)
        dequantized.inputs[1] = gs.Constant(dequantized.inputs[1].name, coarser)
    return write(graph)
