"""Q/DQ insertion by TensorRT's rules for explicit quantization.

Every convolution and the classifier read a dequantized INT8 activation and a dequantized INT8 weight, nothing
that they write is quantized before add and ReLU, and a residual add has Q/DQ on the skip only:

    x ── Q ── DQ ──┬── conv1 ── relu ── Q ── DQ ── conv2 ─┐
                   └───────────────────────────────── add ── relu ── (next block's Q)

An identity skip shares the quantizer of the block's input. A downsample convolution's output has its own.
An option A shortcut (slice, pad) moves values without changing them, so its output takes the scale of its input.

Tensors of full range get a zero point of -128 here; ``full_range.fold_zero_points`` takes it away at the end, when it
is known which blocks stay in floating point.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from calibration.methods.rounding import LearnedWeight
from calibration.scales import dequantize, weight_scales
from calibration.scales import quantize as to_int8
from rescompile.errors import GraphError
from rescompile.graph.offsets import ZERO_POINT
from rescompile.graph.surgeon import read, write
from rescompile.graph.topology import (
    WEIGHTED_OPS,
    behind_quantizers,
    quantized_tensors,
    quantizer_names,
    residual_adds,
)

WeightMethod = Literal["max", "mse"]


def quantize(
    model: onnx.ModelProto,
    scales: Mapping[str, float],
    *,
    weight_method: WeightMethod = "max",
    means: Mapping[str, NDArray[np.floating]] | None = None,
    learned: Mapping[str, LearnedWeight] | None = None,
    full_range: Collection[str] = (),
) -> onnx.ModelProto:
    """The deployable INT8 graph of a folded fp32 graph: symmetric, weights per output channel, bias in float.

    Args:
        model: folded fp32 graph, canonically named.
        scales: activation scale by tensor, one for each of ``topology.quantized_tensors(model)``.
        weight_method: how ``calibration.scales.weight_scales`` chooses the weights' scales. Clipping them by ``mse``
            was no better on real checkpoints (docs/accuracy-notes.md), whatever it does to the weights themselves.
        means: channel means [C] of every weighted node's input; with them each bias takes the mean of its weights'
            rounding error away, b + (W - Q) mean(x) (Nagel et al., 2019).
        learned: integers, scales and biases by node name, in place of rounding to the nearest; of some nodes or all.
        full_range: tensors whose zero is stored as -128.

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
        _quantize_activation(graph, tensors[name], scales[name], ZERO_POINT if name in full_range else 0)
    for name, source in padded.items():
        _quantize_activation(graph, tensors[name], scales[source], ZERO_POINT if source in full_range else 0)
    for node in [node for node in graph.nodes if node.op in WEIGHTED_OPS]:
        source = behind_quantizers(node.inputs[0]).name
        weight = node.inputs[1].values
        if learned is not None and node.name in learned:
            new = learned[node.name]
        else:
            mean = None if means is None else means[source]
            new = _nearest(weight, node.inputs[2].values, weight_method, mean)
        _install(graph, node, new)
    return write(graph)


def _quantize_activation(graph: gs.Graph, tensor: gs.Variable, scale: float, zero_point: int) -> None:
    """Put one Q/DQ pair behind ``tensor``; all its consumers read the dequantized values."""
    consumers = list(tensor.outputs)
    quantize_name, dequantize_name = quantizer_names(tensor.name)
    step = gs.Constant(f"{tensor.name}.scale", np.array(scale, np.float32))
    zero = gs.Constant(f"{tensor.name}.zero_point", np.array(zero_point, np.int8))
    held = gs.Variable(quantize_name, np.int8, tensor.shape)
    restored = gs.Variable(dequantize_name, np.float32, tensor.shape)
    graph.nodes += [
        gs.Node("QuantizeLinear", quantize_name, {}, [tensor, step, zero], [held]),
        gs.Node("DequantizeLinear", dequantize_name, {}, [held, step, zero], [restored]),
    ]
    for node in consumers:
        node.inputs = [restored if used is tensor else used for used in node.inputs]


def _nearest(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    method: WeightMethod,
    mean: NDArray[np.floating] | None,
) -> LearnedWeight:
    scales = weight_scales(weight, method)
    values = to_int8(weight, scales)
    if mean is not None:
        change = weight.astype(np.float64) - dequantize(values, scales)
        by_channel = change.reshape(*weight.shape[:2], -1).sum(axis=2)
        bias = (bias + by_channel @ mean.astype(np.float64)).astype(np.float32)
    return LearnedWeight(values, scales, bias)


def _install(graph: gs.Graph, node: gs.Node, new: LearnedWeight) -> None:
    """Replace the float weight by INT8 values and a DQ per output channel (axis 0), and the bias."""
    name = f"{node.name}.weight"
    inputs = [
        gs.Constant(f"{name}.int8", new.values),
        gs.Constant(f"{name}.scale", new.scales),
        gs.Constant(f"{name}.zero_point", np.zeros(len(new.scales), np.int8)),
    ]
    restored = gs.Variable(f"{name}.dequantize", np.float32, new.values.shape)
    graph.nodes.append(gs.Node("DequantizeLinear", restored.name, {"axis": 0}, inputs, [restored]))
    node.inputs[1] = restored
    node.inputs[2] = gs.Constant(node.inputs[2].name, new.bias)
