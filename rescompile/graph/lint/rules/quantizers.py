"""Rules of the fusion contract for single quantizers, weights and biases."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from rescompile.graph.lint.subject import Findings, Subject, same_scale, values_of
from rescompile.graph.shared.links import (
    QUANTIZER_OPS,
    WEIGHTED_OPS,
    behind_quantizers,
    consumers,
    made_by,
)


def no_quantizer_in_float(subject: Subject) -> Findings:
    """A floating-point engine has no quantizers."""
    if subject.precision != "int8":
        for node in subject.nodes(*QUANTIZER_OPS):
            yield f"'{node.name}' quantizes in an engine asked for in {subject.precision}: remove it"


def int8_only(subject: Subject) -> Findings:
    """Every integer is int8."""
    for node in subject.nodes("QuantizeLinear"):
        if (kind := _integer_type(node)) not in (None, "int8"):
            yield f"'{node.name}' makes {kind}: use int8, because TensorRT reads uint8 as int8 and clips at 127"
    for node in subject.nodes("DequantizeLinear"):
        if (kind := _integer_type(node)) not in (None, "int8"):
            yield f"'{node.name}' reads {kind}: only int8 may be dequantized (a bias stays floating point)"


def _integer_type(node: gs.Node) -> str | None:
    """The type of the zero point, or without one that of a constant input; None for a Q, see rule zero-point-zero."""
    for tensor in (*node.inputs[2:3], node.inputs[0]):
        values = values_of(tensor)
        if values is not None:
            return values.dtype.name
    return None


def zero_point_zero(subject: Subject) -> Findings:
    """Every zero point is a constant 0."""
    for node in subject.nodes(*QUANTIZER_OPS):
        if len(node.inputs) < 3:
            if node.op == "QuantizeLinear":
                yield f"'{node.name}' has no zero point, which means uint8: give it a constant int8 zero"
            continue
        values = values_of(node.inputs[2])
        if values is None:
            yield f"the zero point of '{node.name}' is computed: make it a constant int8 zero"
        elif np.any(values):
            yield f"'{node.name}' has zero point {int(values.flat[0])}: quantize symmetrically, with zero point 0"


def scale_constant_positive(subject: Subject) -> Findings:
    """Every scale is a positive constant."""
    for node in subject.nodes(*QUANTIZER_OPS):
        values = values_of(node.inputs[1])
        if values is None:
            yield f"the scale of '{node.name}' is computed: make it a constant"
            continue
        wrong = ~(np.isfinite(values) & (values.astype(np.float64) > 0))
        if np.any(wrong):
            channel = f" in channel {int(np.argmax(wrong))}" if values.ndim else ""
            yield f"'{node.name}' has a scale that is not positive{channel}: give dead channels the smallest scale"


def scale_type(subject: Subject) -> Findings:
    """A quantizer's scale has the type of its input."""
    for node in subject.nodes("QuantizeLinear"):
        values, kind = values_of(node.inputs[1]), node.inputs[0].dtype
        if values is not None and kind is not None and values.dtype != kind:
            yield f"'{node.name}' reads {np.dtype(kind).name} with a {values.dtype.name} scale: give both one type"


def opset(subject: Subject) -> Findings:
    """The opset allows the type of the scales."""
    needed = 19 if subject.rest_type == "float16" else 13
    if subject.precision == "int8" and subject.opset < needed:
        yield f"the graph has opset {subject.opset}: int8 with {subject.rest_type} scales needs {needed}"


def activation_per_tensor(subject: Subject) -> Findings:
    """An activation has one scale."""
    for node in subject.nodes("QuantizeLinear"):
        values = values_of(node.inputs[1])
        if values is not None and values.size != 1:
            yield f"'{node.name}' has {values.size} scales: activations take one per tensor, or the int8 path is lost"


def weight_per_channel(subject: Subject) -> Findings:
    """A weight has one scale for each output channel, on axis 0."""
    for node in subject.nodes(*WEIGHTED_OPS):
        source = node.inputs[1].inputs[0] if node.inputs[1].inputs else None
        if source is None or source.op != "DequantizeLinear":
            continue  # rule inputs-quantized reports it
        scale = values_of(source.inputs[1])
        channels = source.inputs[0].shape[0]
        if scale is not None and (scale.size != channels or source.attrs.get("axis", 1) != 0):
            yield (
                f"the weight of '{node.name}' has {scale.size} scales on axis {source.attrs.get('axis', 1)}: "
                f"use one for each of the {channels} output channels, on axis 0"
            )


def weight_constant(subject: Subject) -> Findings:
    """Weights are constants."""
    for node in subject.nodes(*WEIGHTED_OPS):
        if node.name not in subject.floating and values_of(behind_quantizers(node.inputs[1])) is None:
            yield f"the weight of '{node.name}' is computed in the graph: store it as a constant"


def bias_float(subject: Subject) -> Findings:
    """Biases are floating-point constants."""
    for node in subject.nodes(*WEIGHTED_OPS):
        if len(node.inputs) > 2 and not isinstance(node.inputs[2], gs.Constant):
            yield f"the bias of '{node.name}' comes from {made_by(node.inputs[2])}: keep it a floating-point constant"


def pairs(subject: Subject) -> Findings:
    """A DQ with the same scale follows each Q."""
    for node in subject.nodes("QuantizeLinear"):
        for user in consumers(node.outputs[0]):
            if user.op != "DequantizeLinear" or not same_scale(user, node):
                yield f"'{node.name}' is read by '{user.name}' ({user.op}): let a DQ with the same scale follow each Q"
