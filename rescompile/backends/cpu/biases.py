"""Biases of zero in a form that OpenVINO keeps.

OpenVINO 2026.4.1 drops a bias of zeros. Where two nodes read such an INT8 convolution, and one of them is a pool, a
ReLU or an operator that moves values, it forgets the scale of the integers there: an output was a thousandth of what it
should be. Networks with random weights have such biases. A bias far below any value's last digit is not dropped.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.graph.shared.links import WEIGHTED_OPS, is_quantized


def keep_zero_biases(graph: gs.Graph) -> None:
    """Give every INT8 layer of ``graph`` a bias that OpenVINO does not take for zero."""
    for node in graph.nodes:
        if node.op not in WEIGHTED_OPS or not is_quantized(node):
            continue
        given = node.inputs[2] if len(node.inputs) > 2 else None
        if given is None:
            scales = node.inputs[1].inputs[0].inputs[1].values
            node.inputs.append(gs.Constant(f"{node.name}.no_bias", _next_to_zero(scales)))
        elif isinstance(given, gs.Constant) and not given.values.any():
            node.inputs[2] = gs.Constant(f"{given.name}.kept", _next_to_zero(given.values))


def _next_to_zero(like: NDArray[np.floating]) -> NDArray[np.floating]:
    """An array of the shape and type of ``like``, whose values are too small to change a sum."""
    return np.full_like(like, max(2.0**-100, float(np.finfo(like.dtype).smallest_subnormal)))
