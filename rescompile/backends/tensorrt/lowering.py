"""The classifier lowered to a 1x1 convolution, for the one target whose compiler has no FP32 matrix product."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.shared.editing import read, write


def classifier_as_convolution(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with every float Gemm that has constant weights [M, C] as a convolution over [N, C, 1, 1]."""
    graph = read(model)
    found = [node for node in graph.nodes if node.op == "Gemm" and _is_plain(node)]
    for node in found:
        _replace(graph, node)
    return write(graph) if found else model


def _is_plain(gemm: gs.Node) -> bool:
    """Whether ``gemm`` computes x W^T + b with a constant W."""
    defaults = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
    return isinstance(gemm.inputs[1], gs.Constant) and defaults | gemm.attrs == defaults | {"transB": 1}


def _replace(graph: gs.Graph, gemm: gs.Node) -> None:
    source, weight, *bias = gemm.inputs
    pixel, kernel, mapped = (f"{gemm.name}.{part}" for part in ("pixel", "kernel", "map"))
    shape = gs.Constant(f"{gemm.name}.shape", np.array([0, -1, 1, 1]))
    image, logits = gs.Variable(pixel), gs.Variable(mapped)
    weights = gs.Constant(kernel, weight.values[:, :, None, None])
    outputs, gemm.outputs = list(gemm.outputs), []
    graph.nodes += [
        gs.Node("Reshape", pixel, {}, [source, shape], [image]),
        gs.Node("Conv", mapped, {"kernel_shape": [1, 1]}, [image, weights, *bias], [logits]),
        gs.Node("Flatten", gemm.name, {"axis": 1}, [logits], outputs),
    ]
