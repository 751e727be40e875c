"""Rules of the fusion contract for tensors that use all of int8: those whose ReLU is saturation, and pixels."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from rescompile.graph.constant_channels import is_balanced
from rescompile.graph.lint.subject import Findings, Subject, values_of
from rescompile.graph.topology import consumers, pads_input, readers
from rescompile.graph.vocabulary import PIXEL_STEP, PIXELS

_FP16_EPS = float(np.finfo(np.float16).eps)


def full_range(subject: Subject) -> Findings:
    """Zero is stored as -128 in these tensors, so each has a quantizer, and padding with zeros must not count."""
    quantizers = {node.inputs[0].name: node for node in subject.nodes("QuantizeLinear")}
    for name in sorted(subject.full_range):
        if name not in quantizers:
            yield f"'{name}' has an offset, but no quantizer that saturates: put its Q/DQ back"
            continue
        for dequantize in consumers(quantizers[name].outputs[0]):
            for node in readers(dequantize.outputs[0]):
                yield from _reading(node, name, -subject.full_range[name])


def _reading(node: gs.Node, tensor: str, zero: float) -> Findings:
    """What is wrong with ``node`` as a reader of ``tensor``, where the network's zero is ``zero``."""
    if pads_input(node) and not is_balanced(node):
        yield (
            f"'{node.name}' pads '{tensor}', whose zero is not 0, and the weights of a tap do not sum to zero: give it "
            "constant channels, or quantize it symmetrically"
        )
    if node.op == "Pad" and not np.isclose(_pad_value(node), zero, rtol=_FP16_EPS):
        yield f"'{node.name}' pads '{tensor}' with another value than its zero: pad with {zero:g}"
    if node.op not in ("Conv", "Pad", "Add", "Slice", "QuantizeLinear"):
        yield (
            f"'{node.name}' ({node.op}) reads '{tensor}', whose zero is not 0: only sums and convolutions can; "
            "quantize it symmetrically"
        )


def _pad_value(pad: gs.Node) -> float:
    values = values_of(pad.inputs[2]) if len(pad.inputs) > 2 else None
    return 0.0 if values is None else float(values)


def exact_pixels(subject: Subject) -> Findings:
    """Where the first convolution reads pixels, its quantizer holds them without rounding, and no pixel is padding."""
    for quantize in subject.nodes("QuantizeLinear"):
        if quantize.inputs[0].name != PIXELS:
            continue
        scale = values_of(quantize.inputs[1])
        if scale is not None and not (scale == PIXEL_STEP).all():
            yield f"'{PIXELS}' holds multiples of {PIXEL_STEP}, but '{quantize.name}' has another scale: use that"
        for dequantize in consumers(quantize.outputs[0]):
            for reader in consumers(dequantize.outputs[0]):
                if pads_input(reader):
                    yield (
                        f"'{reader.name}' pads '{PIXELS}' with zeros, which are pixels of 128: pad the normalized "
                        "image in front of it"
                    )
