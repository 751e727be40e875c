"""Signed quantizers kept apart from the Concat in front of them.

OpenVINO 2026.4.1 quantizes the tensors that a Concat joins one by one where a QuantizeLinear follows, also behind a
ReLU or a Clip between them. Of a signed quantizer the convolution behind it then reads wrong integers, with errors of
30 % and any kind of joined tensors. A maximum that changes nothing, because the quantizer saturates there, keeps the
two apart, and is computed by the quantizer's own pass.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from rescompile.graph.shared.links import made_by, step_above


def hold_joins(graph: gs.Graph) -> None:
    """Put a maximum between each signed quantizer of ``graph`` and the Concat in front of it."""
    for quantize in [node for node in graph.nodes if node.op == "QuantizeLinear"]:
        source, scale, zero = quantize.inputs
        least = int(np.iinfo(zero.values.dtype).min) - int(zero.values)
        if least < 0 and made_by(step_above(source, {"Relu", "Clip"})) == "Concat":
            bound = gs.Constant(f"{source.name}.least", np.asarray(least * scale.values, scale.values.dtype))
            held = gs.Variable(f"{source.name}.held_apart")
            graph.nodes.append(gs.Node("Max", held.name, {}, [source, bound], [held]))
            quantize.inputs[0] = held
