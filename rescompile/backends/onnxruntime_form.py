"""The INT8 graph in the form that ONNX Runtime executes with integer kernels, for CPUs that add products in 32 bits.

ONNX Runtime fuses DQ, convolution and Q into one kernel if all of its tensors are quantized: the activations as uint8,
and the bias as int32 in steps of activation scale times weight scale. It has no kernel for a convolution with a
residual addition, as the deployable graph has them, and computes both in floating point. So here:

* the graph is lowered as for OpenVINO (``cpu.lowering``), which gives every ReLU's output a zero point of 0, into
  which ReLUs vanish;
* signed activations get the zero point 128, and biases become integers; the values are the same;
* the branch of a residual addition gets a quantizer. Its range needs no images: a sum beyond the output's range
  saturates there, so of branch = sum - skip only lowest sum - highest skip to highest sum - lowest skip matters.

The last point adds a rounding of about two steps of the output, which the deployable graph does not have. And where a
tensor that cannot be negative uses 128 of 256 values, it is not clipped at the last of them, because no kernel clips:
values beyond the calibrated range, if any, come nearer to those in floating point.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from rescompile.backends.cpu.lowering import lower
from rescompile.errors import BackendError
from rescompile.graph.shared.editing import read, write
from rescompile.graph.shared.links import WEIGHTED_OPS, consumers, is_quantized, made_by, step_above
from rescompile.manifest import CpuForm

_STEPS = 255
_INT32 = np.iinfo(np.int32).max


def lower_for_onnxruntime(model: onnx.ModelProto, form: CpuForm) -> tuple[onnx.ModelProto, int]:
    """The INT8 ``model`` in this form, and the number of residual additions whose branch is rounded once more.

    Raises:
        BackendError: a bias does not fit into int32.
    """
    graph = read(lower(model, form))
    rounded = sum(_quantize_branch(graph, node) for node in list(graph.nodes) if node.op == "Add")
    for node in list(graph.nodes):
        if node.op == "QuantizeLinear":
            _make_unsigned(node)
            _drop_clip(node)
        elif node.op in WEIGHTED_OPS and is_quantized(node) and made_by(node.inputs[0]) == "DequantizeLinear":
            _make_bias_integer(graph, node)
    return write(graph), rounded


def _quantize_branch(graph: gs.Graph, add: gs.Node) -> bool:
    """Quantize the output of the convolution that ``add`` adds to a quantized skip; whether there is one."""
    branches = [each for each in add.inputs if made_by(each) == "Conv" and is_quantized(each.inputs[0])]
    skips = [step_above(each, ("MaxPool",)) for each in add.inputs if each not in branches]
    ends = _range_behind(add.outputs[0])
    if len(branches) != 1 or made_by(skips[0]) != "DequantizeLinear" or ends is None:
        return False
    (branch,), (low, high), (lowest, highest) = branches, ends, _range_of(skips[0].inputs[0])
    scale = np.float32((high - lowest - (low - highest)) / _STEPS)
    zero = np.uint8(np.clip(np.rint((highest - low) / scale), 0, _STEPS))
    numbers = [
        gs.Constant(f"{branch.name}.branch.scale", np.array(scale)),
        gs.Constant(f"{branch.name}.branch.zero_point", np.array(zero)),
    ]
    tensor = branch
    for op, suffix in (("QuantizeLinear", "quantized"), ("DequantizeLinear", "restored")):
        output = gs.Variable(f"{branch.name}.branch.{suffix}")
        graph.nodes.append(gs.Node(op, output.name, {}, [tensor, *numbers], [output]))
        tensor = output
    add.inputs = [tensor if each is branch else each for each in add.inputs]
    return True


def _range_behind(tensor: gs.Tensor) -> tuple[float, float] | None:
    """The least and the largest value that the quantizer behind ``tensor`` holds; None where others read it."""
    top = np.inf
    while True:
        readers = consumers(tensor)
        if len(readers) != 1:
            return None
        (reader,) = readers
        if reader.op == "QuantizeLinear":
            low, high = _range_of(reader)
            return low, min(high, top)
        if (bound := _upper_bound(reader)) is not None:
            top = min(top, bound)
        elif reader.op != "Relu":
            return None
        tensor = reader.outputs[0]


def _upper_bound(node: gs.Node) -> float | None:
    """The constant that no output of a Clip or a minimum exceeds; None for others."""
    position = {"Clip": 2, "Min": 1}.get(node.op)
    if position is None or len(node.inputs) != position + 1 or not isinstance(node.inputs[-1], gs.Constant):
        return None
    return float(node.inputs[-1].values)


def _range_of(quantizer: gs.Node) -> tuple[float, float]:
    """The least and the largest value that a QuantizeLinear or DequantizeLinear holds."""
    scale, zero = (each.values for each in quantizer.inputs[1:3])
    bounds, step = np.iinfo(zero.dtype), float(scale)
    return (bounds.min - int(zero)) * step, (bounds.max - int(zero)) * step


def _make_unsigned(quantize: gs.Node) -> None:
    zero = quantize.inputs[2]
    if zero.values.dtype != np.int8:
        return
    moved = gs.Constant(f"{zero.name}.unsigned", np.asarray(zero.values.astype(np.int16) + 128, np.uint8))
    quantize.inputs[2] = moved
    for reader in consumers(quantize.outputs[0]):
        if reader.op == "DequantizeLinear":
            reader.inputs[2] = moved


def _drop_clip(quantize: gs.Node) -> None:
    """Let ``quantize`` read in front of the lowering's clip; by itself it makes 0 of what is negative."""
    source, (scale, zero) = quantize.inputs[0], (each.values for each in quantize.inputs[1:3])
    clip = source.inputs[0] if source.inputs else None
    bound = None if clip is None else _upper_bound(clip)
    if clip is None or bound is None or int(zero) or len(consumers(source)) > 1:
        return
    from_zero = clip.op == "Min" or float(clip.inputs[1].values) == 0
    if from_zero and np.isclose(bound, 127 * scale, rtol=1e-5):
        quantize.inputs[0] = clip.inputs[0]


def _make_bias_integer(graph: gs.Graph, node: gs.Node) -> None:
    bias = node.inputs[2]
    step, scales = (each.inputs[0].inputs[1].values for each in node.inputs[:2])
    steps = (step * scales).astype(np.float32)
    integers = np.rint(bias.values / steps.astype(np.float64))
    if np.abs(integers).max() > _INT32:
        raise BackendError(
            f"the bias of '{node.name}' does not fit into int32, which ONNX Runtime computes with; build again with "
            "--cpu-form avx2 or --precision fp16"
        )
    restored = gs.Variable(f"{bias.name}.restored")
    inputs = [
        gs.Constant(f"{bias.name}.int32", integers.astype(np.int32)),
        gs.Constant(f"{bias.name}.scale", steps),
    ]
    graph.nodes.append(gs.Node("DequantizeLinear", restored.name, {"axis": 0}, inputs, [restored]))
    node.inputs[2] = restored
