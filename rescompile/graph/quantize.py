"""Q/DQ insertion by TensorRT's rules for explicit quantization.

Every convolution and the classifier read a dequantized INT8 activation and a dequantized INT8 weight, their outputs
are not quantized before add and ReLU, and a residual add has Q/DQ on the skip only:

    x ── Q ── DQ ──┬── conv1 ── relu ── Q ── DQ ── conv2 ─┐
                   └───────────────────────────────── add ── relu ── (next block's Q)

An identity skip shares the quantizer of the block's input. A downsample convolution's output has its own.
What only moves quantized values, such as an option A shortcut (slice, pad) or a split, takes the scale of its input.

Tensors of full range get a zero point of -128 here; ``full_range.fold_zero_points`` moves it into biases at the end,
when it is known which blocks stay in floating point.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from calibration.methods.rounding import LearnedWeight
from calibration.scales import NARROW_LEVELS, channel_scales, dequantize, weight_scales
from calibration.scales import quantize as to_int8
from rescompile.errors import GraphError
from rescompile.graph.shared.editing import read, reconnect, write
from rescompile.graph.shared.links import WEIGHTED_OPS, behind_quantizers
from rescompile.graph.shared.metadata import ZERO_POINT, float_reasons
from rescompile.graph.shared.names import DEQUANTIZE_SUFFIX, QUANTIZE_SUFFIX
from rescompile.graph.shared.topology import quantized_tensors, scale_sources

WeightMethod = Literal["max", "mse"]


def quantize(
    model: onnx.ModelProto,
    scales: Mapping[str, float],
    *,
    weight_method: WeightMethod = "max",
    means: Mapping[str, NDArray[np.floating]] | None = None,
    learned: Mapping[str, LearnedWeight] | None = None,
    weight_steps: Mapping[str, NDArray[np.float32]] | None = None,
    full_range: Collection[str] = (),
    narrow: Collection[str] = (),
) -> onnx.ModelProto:
    """The deployable INT8 graph of a folded fp32 graph: symmetric, weights per output channel, bias in float.

    Args:
        model: folded fp32 graph, canonically named.
        scales: activation scale by tensor, one for each of ``topology.quantized_tensors(model)``.
        weight_method: how ``calibration.scales.weight_scales`` chooses the weights' scales. ``mse``, which clips, was
            no better on real checkpoints (docs/accuracy-notes.md).
        means: channel means [C] of every weighted node's input. With them, biases cancel the shift that rounding the
            weights gives to a layer's average output: b + (W - Q) mean(x) (Nagel et al., 2019).
        learned: integers, scales and biases by node name, in place of rounding to nearest, for some nodes or all.
        weight_steps: scales [O] of weights by node name, in place of those that ``weight_method`` would choose.
        full_range: tensors that store their zero as -128.
        narrow: nodes whose weights stay within ``NARROW_LEVELS`` when they are rounded to nearest.

    Raises:
        GraphError: a tensor that needs a scale has none, or ``weight_steps`` are of other weights.
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
    for name, source in scale_sources(graph).items():
        _quantize_activation(graph, tensors[name], scales[source], ZERO_POINT if source in full_range else 0)
    floating = float_reasons(model)
    for node in [node for node in graph.nodes if node.op in WEIGHTED_OPS and node.name not in floating]:
        source = behind_quantizers(node.inputs[0]).name
        weight = node.inputs[1].values
        if learned is not None and node.name in learned:
            new = learned[node.name]
        else:
            mean = None if means is None else means[source]
            bias, groups = node.inputs[2].values, node.attrs.get("group", 1)
            known = (weight_steps or {}).get(node.name)
            steps = weight_scales(weight, weight_method) if known is None else known
            if len(steps) != len(weight):
                raise GraphError(
                    f"the calibration table has {len(steps)} weight scales for the {len(weight)} output channels of "
                    f"'{node.name}': calibrate again with this model"
                )
            if node.name in narrow:
                least = channel_scales(weight, NARROW_LEVELS)
                steps = least if known is None else np.maximum(steps, least)
            new = _nearest(weight, bias, steps, mean, groups)
        _install(graph, node, new)
    return write(graph)


def _quantize_activation(graph: gs.Graph, tensor: gs.Variable, scale: float, zero_point: int) -> None:
    """Put one Q/DQ pair behind ``tensor``; all its readers read the dequantized values."""
    step = gs.Constant(f"{tensor.name}.scale", np.array(scale, np.float32))
    zero = gs.Constant(f"{tensor.name}.zero_point", np.array(zero_point, np.int8))
    stored = gs.Variable(tensor.name + QUANTIZE_SUFFIX, np.int8, tensor.shape)
    restored = gs.Variable(tensor.name + DEQUANTIZE_SUFFIX, np.float32, tensor.shape)
    reconnect(tensor.outputs, tensor, restored)
    graph.nodes += [
        gs.Node("QuantizeLinear", stored.name, {}, [tensor, step, zero], [stored]),
        gs.Node("DequantizeLinear", restored.name, {}, [stored, step, zero], [restored]),
    ]


def _nearest(
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    scales: NDArray[np.float32],
    mean: NDArray[np.floating] | None,
    groups: int,
) -> LearnedWeight:
    values = to_int8(weight, scales)
    if mean is not None:
        change = weight.astype(np.float64) - dequantize(values, scales)
        by_channel = change.reshape(*weight.shape[:2], -1).sum(axis=2)
        parts = zip(np.split(by_channel, groups), np.split(mean.astype(np.float64), groups), strict=True)
        bias = (bias + np.concatenate([part @ read for part, read in parts])).astype(np.float32)
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
