"""Nodes of a deployable graph that are looked for in a built engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def residual_adds(model: onnx.ModelProto) -> set[str]:
    """Names of the additions at the ends of residual blocks; those that join branches elsewhere do not count."""
    adds = (node.name for node in model.graph.node if node.op_type == "Add")
    return {name for name in adds if name.endswith(".add")}


def quantized_layers(model: onnx.ModelProto) -> int:
    """Number of convolutions and classifiers with INT8 weights."""
    restored = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    weighted = (node for node in model.graph.node if node.op_type in {"Conv", "Gemm"})
    return sum(node.input[1] in restored for node in weighted)
