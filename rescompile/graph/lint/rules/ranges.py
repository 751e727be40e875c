"""Rules of the fusion contract for tensors that use all 256 values of int8: full range and exact pixels."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from rescompile.graph.lint.subject import Findings, Subject, values_of
from rescompile.graph.shared.constant_channels import is_balanced
from rescompile.graph.shared.links import consumers, pads_input, readers
from rescompile.graph.shared.names import PIXEL_STEP, PIXELS

_FP16_EPS = float(np.finfo(np.float16).eps)


def full_range(subject: Subject) -> Findings:
    """A tensor of full range has a quantizer that saturates, and readers that allow for zero stored as -128."""
    quantizers = {node.inputs[0].name: node for node in subject.nodes("QuantizeLinear")}
    for name in sorted(subject.full_range):
        if name not in quantizers:
            yield f"'{name}' has an offset, but no quantizer that saturates: put its Q/DQ back"
            continue
        for dequantize in consumers(quantizers[name].outputs[0]):
            for node in readers(dequantize.outputs[0]):
                yield from _reading(node, name, -subject.full_range[name])


def _reading(node: gs.Node, tensor: str, zero: float) -> Findings:
    """What ``node`` does wrong when it reads ``tensor``, in which ``zero`` stands for the network's zero."""
    if pads_input(node) and not is_balanced(node):
        yield (
            f"'{node.name}' pads '{tensor}', whose zero is not 0, and the weights of a tap do not sum to zero: give "
            "the tensor constant channels, or quantize it symmetrically"
        )
    if node.op == "Pad" and not np.isclose(_pad_value(node), zero, rtol=_FP16_EPS):
        yield f"'{node.name}' pads '{tensor}' with another value than its zero: pad with {zero:g}"
    if node.op not in ("Conv", "Pad", "Add", "Slice", "QuantizeLinear"):
        yield (
            f"'{node.name}' ({node.op}) reads '{tensor}', whose zero is not 0, which only adds and convolutions can: "
            "quantize the tensor symmetrically"
        )


def _pad_value(pad: gs.Node) -> float:
    values = values_of(pad.inputs[2]) if len(pad.inputs) > 2 else None
    return 0.0 if values is None else float(values)


def exact_pixels(subject: Subject) -> Findings:
    """The quantizer of exact pixels does not round them, and the first convolution does not pad them."""
    for quantize in subject.nodes("QuantizeLinear"):
        if quantize.inputs[0].name != PIXELS:
            continue
        scale = values_of(quantize.inputs[1])
        if scale is not None and not (scale == PIXEL_STEP).all():
            yield f"'{PIXELS}' holds multiples of {PIXEL_STEP}, but '{quantize.name}' has another scale: use that step"
        for dequantize in consumers(quantize.outputs[0]):
            for reader in consumers(dequantize.outputs[0]):
                if pads_input(reader):
                    yield (
                        f"'{reader.name}' pads '{PIXELS}' with zeros, which are pixels of 128: pad the normalized "
                        "image in front of it"
                    )
