"""Operations that the Triton backend cannot build, found in the fp32 graph before any calibration."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_graphsurgeon as gs

from rescompile.graph.shared.editing import read
from rescompile.graph.shared.links import MOVEMENT_OPS, WEIGHTED_OPS, consumers, step_above

_KNOWN = {*WEIGHTED_OPS, "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten", *MOVEMENT_OPS}
_POOL = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}
MOST_IMAGE_CHANNELS = 4
"""Channels of an image that fit into one packed pixel."""


def reasons_against(model: onnx.ModelProto) -> tuple[str, ...]:
    """Reasons why no fused kernels compute ``model``, a folded fp32 graph; each kind once, with its number."""
    graph = read(model)
    found: Counter[str] = Counter()
    if not all(isinstance(side, int) for side in graph.inputs[0].shape[1:]):
        found["images of more than one size (--dynamic-size)"] = 1
    if len(graph.outputs) > 1:
        found[f"{len(graph.outputs)} outputs"] = 1
    for node in graph.nodes:
        if node.op not in _KNOWN:
            found[f"{node.op}"] += node.op != "Identity" or len(graph.outputs) == 1
        elif node.op == "Conv":
            found.update(_against_convolution(node))
        elif node.op == "MaxPool":
            usual = all(node.attrs.get(key) == value for key, value in _POOL.items())
            if not usual or node.attrs.get("ceil_mode", 0):
                found["max pool other than 3x3 with stride 2 and padding 1"] += 1
            source = step_above(node.inputs[0], ("Relu",))
            if not source.inputs or source.inputs[0].op != "Conv" or source.inputs[0].inputs[0].inputs:
                found["max pool that does not follow the first convolution"] += 1
        elif node.op == "Gemm" and any(reader.op != "Identity" for reader in consumers(node.outputs[0])):
            found["linear layer in front of the last one"] += 1
    return tuple(reason if count == 1 else f"{count} x {reason}" for reason, count in found.items() if count)


def _against_convolution(conv: gs.Node) -> set[str]:
    found = set()
    attrs = conv.attrs
    if attrs.get("group", 1) != 1:
        found.add("grouped convolution")
    if set(attrs.get("dilations", [1])) != {1}:
        found.add("dilated convolution")
    if len(set(attrs.get("strides", [1]))) > 1 or len(set(attrs.get("pads", [0]))) > 1:
        found.add("convolution with unequal strides or padding")
    if not isinstance(conv.inputs[1], gs.Constant):
        found.add("convolution with computed weights")
    elif not conv.inputs[0].inputs and conv.inputs[1].shape[1] > MOST_IMAGE_CHANNELS:
        found.add(f"image of more than {MOST_IMAGE_CHANNELS} channels")
    return found
