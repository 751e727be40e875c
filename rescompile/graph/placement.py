"""Placement of quantizers: the operations that are quantized, by rule, and why the others are not.

Convolutions and linear layers with constant weights are, and the residual additions whose branch ends in one; their
inputs get quantizers (``topology.quantized_tensors``). Everything that no rule knows stays in floating point. The
reasons are recorded in the model by node, where calibration, quantization, lint and the report read them.
"""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.shared.constant_channels import CHANNEL_STEP, FEWEST_CHANNELS
from rescompile.graph.shared.editing import read
from rescompile.graph.shared.links import MOVEMENT_OPS, WEIGHTED_OPS, consumers, made_by, reads_image
from rescompile.graph.shared.metadata import set_float_reasons
from rescompile.graph.shared.topology import branch_of

_TRANSPARENT = (
    "Relu", "Clip", "MaxPool", "Flatten", "Reshape", "Concat", "Identity", "Shape", "Gather", "Unsqueeze", "Squeeze",
    "Constant", "Cast", *MOVEMENT_OPS,
)  # fmt: skip
"""Operators that run in the kernel in front of them, or move values, or compute sizes."""


def place(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` with the reasons for everything that is not quantized; nothing else changes.

    ``model`` is a folded fp32 graph, named by block.
    """
    graph = read(model)
    reasons: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in WEIGHTED_OPS and (reason := _weighted(node, graph)):
            reasons[node.name] = reason
    for node in graph.nodes:
        if node.op in WEIGHTED_OPS:
            continue
        reason = _addition(node, reasons) if node.name.endswith(".add") else _other(node, reasons)
        if reason:
            reasons[node.name] = reason
    if not reasons:
        return model
    placed = onnx.ModelProto()
    placed.CopyFrom(model)
    set_float_reasons(placed, reasons)
    return placed


def _weighted(node: gs.Node, graph: gs.Graph) -> str | None:
    """The reason why a convolution or linear layer stays in floating point."""
    weight = node.inputs[1]
    if not all(isinstance(tensor, gs.Constant) for tensor in node.inputs[1:]):
        return "weights that are computed in the graph"
    if ".gate" in node.name:
        return "a gate, which sees one pixel"
    outputs = int(weight.shape[0])
    if node.op == "Gemm":
        last = any(tensor is output for tensor in node.outputs for output in graph.outputs)
        return "a last layer with one output" if last and outputs == 1 else None
    if len(weight.shape) != 4:
        return f"a convolution over {len(weight.shape) - 2} dimensions"
    inputs = int(weight.shape[1]) * node.attrs.get("group", 1)
    for count in (outputs,) if reads_image(node) else (outputs, inputs):
        if count < FEWEST_CHANNELS and count % CHANNEL_STEP:
            return f"{count} channels, too few for INT8 kernels"
    return None


def _addition(add: gs.Node, reasons: dict[str, str]) -> str | None:
    """The reason why a residual addition is not part of an INT8 convolution."""
    branch = branch_of(add)
    if branch is None:
        makers = sorted({made_by(tensor) for tensor in add.inputs} - set(_TRANSPARENT) - {"Conv"})
        return f"an addition whose branch does not end in a convolution of its own ({' '.join(makers) or 'Conv'})"
    return f"an addition behind {reasons[branch.name]}" if branch.name in reasons else None


def _other(node: gs.Node, reasons: dict[str, str]) -> str | None:
    if node.op in _TRANSPARENT:
        return None
    if node.op == "GlobalAveragePool":
        return None if _feeds_int8_classifier(node, reasons) else "GlobalAveragePool"
    return str(node.op)


def _feeds_int8_classifier(pool: gs.Node, reasons: dict[str, str]) -> bool:
    """Whether a linear layer in INT8 reads what ``pool`` makes."""
    users = consumers(pool.outputs[0])
    while len(users) == 1 and users[0].op in ("Flatten", "Reshape", "Squeeze"):
        users = consumers(users[0].outputs[0])
    return any(user.op in WEIGHTED_OPS and user.name not in reasons for user in users)
