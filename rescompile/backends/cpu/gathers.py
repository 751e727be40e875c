"""Gathers in a spelling that OpenVINO computes right.

OpenVINO moves a Gather that permutes channels into the weights of the convolution behind it, and permutes them wrongly
(seen in 2026.4.1, in every precision; the answers have nothing in common with the right ones). It recognizes the Gather
by an axis that is counted from the front, so the axis is counted from the back here.
"""

from __future__ import annotations

import onnx
from onnx import shape_inference


def count_axes_from_the_back(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the axis of every Gather counted from the last one; ``model`` itself where there is none."""
    if all(node.op_type != "Gather" for node in model.graph.node):
        return model
    inferred = shape_inference.infer_shapes(model)
    known = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in known}
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node in changed.graph.node:
        rank = ranks.get(node.input[0], 0)
        for attribute in node.attribute:
            if node.op_type == "Gather" and attribute.name == "axis" and 0 <= attribute.i < rank:
                attribute.i -= rank
    return changed
