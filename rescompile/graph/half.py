"""FP16 for everything that is not quantized; the graph's own input and logits stay FP32.

Scales keep their values, because ``calibration.scales`` only makes scales that FP16 represents exactly.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rescompile.errors import GraphError
from rescompile.graph.shared.editing import read, reconnect, write

LARGEST = float(np.finfo(np.float16).max)


def half(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with FP16 in place of FP32 between a cast behind its input and a cast before its output.

    Raises:
        GraphError: a weight or bias that FP16 cannot hold.
    """
    graph = read(model)
    fixed = {id(tensor) for node in graph.nodes if node.op == "Resize" for tensor in node.inputs[2:3]}
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant):
            if id(tensor) not in fixed:  # ONNX allows no other type for the scales of Resize
                _halve_constant(tensor)
        elif tensor.dtype == np.float32:
            tensor.dtype = np.float16
    for node in graph.nodes:
        if node.op == "Cast" and node.attrs["to"] == onnx.TensorProto.FLOAT:
            node.attrs["to"] = onnx.TensorProto.FLOAT16
    _cast_input(graph)
    for output in graph.outputs:
        _cast_output(graph, output)
    return write(graph)


def _halve_constant(constant: gs.Constant) -> None:
    values = constant.values
    if values.dtype != np.float32:
        return
    peak = float(np.abs(values).max(initial=0.0))
    if peak > LARGEST:
        raise GraphError(
            f"'{constant.name}' holds {peak:g}, but the largest FP16 number is {LARGEST:g}: build with --precision "
            "fp32, or check the checkpoint for a batch norm with a vanishing variance"
        )
    constant.values = values.astype(np.float16)


def _cast_input(graph: gs.Graph) -> None:
    """Make a float input FP32 again, with a cast behind it; a uint8 input has its cast already."""
    source = graph.inputs[0]
    if source.dtype != np.float16:
        return
    source.dtype = np.float32
    cast = gs.Variable(f"{source.name}.half", np.float16, source.shape)
    reconnect(source.outputs, source, cast)
    graph.nodes.append(gs.Node("Cast", cast.name, {"to": onnx.TensorProto.FLOAT16}, [source], [cast]))


def _cast_output(graph: gs.Graph, logits: gs.Variable) -> None:
    narrow = gs.Variable(f"{logits.name}.half", np.float16, logits.shape)
    logits.inputs[0].outputs = [narrow]
    logits.dtype = np.float32
    graph.nodes.append(
        gs.Node("Cast", f"{logits.name}.float", {"to": onnx.TensorProto.FLOAT}, [narrow], [logits])
    )
