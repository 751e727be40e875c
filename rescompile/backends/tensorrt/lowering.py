"""The classifier lowered to a 1x1 convolution, for the one target whose compiler has no FP32 matrix product."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


def classifier_as_convolution(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with every float Gemm that has constant weights [M, C] as a convolution over [N, C, 1, 1]."""
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    graph = lowered.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = [
        new
        for node in graph.node
        for new in (_as_convolution(graph, constants, node) if _fits(node, constants) else [node])
    ]
    ordered = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(ordered)
    return lowered


def _fits(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Whether ``node`` computes x W^T + b with a constant W."""
    attributes = {field.name: helper.get_attribute_value(field) for field in node.attribute}
    plain = attributes in ({"transB": 1}, {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1})
    return node.op_type == "Gemm" and plain and node.input[1] in constants


def _as_convolution(
    graph: onnx.GraphProto, constants: dict[str, onnx.TensorProto], node: onnx.NodeProto
) -> list[onnx.NodeProto]:
    weight = numpy_helper.to_array(constants[node.input[1]])
    names = {part: f"{node.name}.{part}" for part in ("shape", "pixel", "kernel", "map")}
    graph.initializer.append(numpy_helper.from_array(np.array([0, -1, 1, 1]), names["shape"]))
    graph.initializer.append(numpy_helper.from_array(weight[:, :, None, None], names["kernel"]))
    inputs = [names["pixel"], names["kernel"], *node.input[2:]]
    return [
        helper.make_node("Reshape", [node.input[0], names["shape"]], [names["pixel"]], name=names["pixel"]),
        helper.make_node("Conv", inputs, [names["map"]], name=names["map"], kernel_shape=[1, 1]),
        helper.make_node("Flatten", [names["map"]], list(node.output), name=node.name, axis=1),
    ]
