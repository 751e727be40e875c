"""Q/DQ insertion by TensorRT's rules for explicit quantization.

Every convolution and the classifier read a dequantized INT8 activation and a dequantized INT8 weight, nothing
that they write is quantized before add and ReLU, and a residual add has Q/DQ on the skip only:

    x ── Q ── DQ ──┬── conv1 ── relu ── Q ── DQ ── conv2 ─┐
                   └───────────────────────────────── add ── relu ── (next block's Q)

An identity skip shares the quantizer of the block's input. A downsample convolution's output has its own.
An option A shortcut (slice, pad) moves values without changing them, so its output takes the scale of its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from calibration.scales import quantize as to_int8
from calibration.scales import weight_scales
from rescompile.errors import GraphError
from rescompile.graph.surgeon import read, write
from rescompile.graph.topology import WEIGHTED_OPS, quantized_tensors, quantizer_names, residual_adds

WeightMethod = Literal["max", "mse"]


def quantize(
    model: onnx.ModelProto, scales: Mapping[str, float], *, weight_method: WeightMethod = "max"
) -> onnx.ModelProto:
    """The deployable INT8 graph of a folded fp32 graph: symmetric, weights per output channel, bias in float.

    Args:
        model: folded fp32 graph, canonically named.
        scales: activation scale by tensor, one for each of ``topology.quantized_tensors(model)``.
        weight_method: how ``calibration.scales.weight_scales`` chooses the weights' scales. Clipping them by ``mse``
            was no better on real checkpoints (docs/accuracy.md), whatever it does to the weights themselves.

    Raises:
        GraphError: a tensor that needs a scale has none.
    """
    wanted = quantized_tensors(model)
    missing = [name for name in wanted if name not in scales]
    if missing:
        raise GraphError(
            f"the calibration table has no scale for '{missing[0]}' ({len(missing)} of {len(wanted)} tensors are "
            "missing): calibrate again with this model"
        )
    graph = read(model)
    tensors = graph.tensors()
    padded = {add.skip: add.source for add in residual_adds(graph) if add.skip != add.source}
    for name in wanted:
        _quantize_activation(graph, tensors[name], scales[name])
    for name, source in padded.items():
        _quantize_activation(graph, tensors[name], scales[source])
    for node in [node for node in graph.nodes if node.op in WEIGHTED_OPS]:
        _quantize_weight(graph, node, weight_method)
    return write(graph)


def _quantize_activation(graph: gs.Graph, tensor: gs.Variable, scale: float) -> None:
    """Put one Q/DQ pair behind ``tensor``; all its consumers read the dequantized values."""
    consumers = list(tensor.outputs)
    quantize_name, dequantize_name = quantizer_names(tensor.name)
    step = gs.Constant(f"{tensor.name}.scale", np.array(scale, np.float32))
    zero = gs.Constant(f"{tensor.name}.zero_point", np.array(0, np.int8))
    held = gs.Variable(quantize_name, np.int8, tensor.shape)
    restored = gs.Variable(dequantize_name, np.float32, tensor.shape)
    graph.nodes += [
        gs.Node("QuantizeLinear", quantize_name, {}, [tensor, step, zero], [held]),
        gs.Node("DequantizeLinear", dequantize_name, {}, [held, step, zero], [restored]),
    ]
    for node in consumers:
        node.inputs = [restored if used is tensor else used for used in node.inputs]


def _quantize_weight(graph: gs.Graph, node: gs.Node, method: WeightMethod) -> None:
    """Replace the float weight by INT8 values and a DQ per output channel (axis 0)."""
    weight = node.inputs[1].values
    scales = weight_scales(weight, method=method)
    name = f"{node.name}.weight"
    values = to_int8(weight, scales.reshape(-1, *[1] * (weight.ndim - 1)))
    inputs = [
        gs.Constant(f"{name}.int8", values),
        gs.Constant(f"{name}.scale", scales),
        gs.Constant(f"{name}.zero_point", np.zeros(len(scales), np.int8)),
    ]
    restored = gs.Variable(f"{name}.dequantize", np.float32, weight.shape)
    graph.nodes.append(gs.Node("DequantizeLinear", restored.name, {"axis": 0}, inputs, [restored]))
    node.inputs[1] = restored
