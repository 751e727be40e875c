"""Residual adds that an engine fuses, read from the engine inspector's JSON of TensorRT 10 and 11.

10.x   {"Layers": [{"Name": "a + b", "Metadata": "[ONNX Layer: a]\\x1e[ONNX Layer: b]",
                    "Inputs": [{"Format/Datatype": "Int8 NC/32HW32", ...}], ...}], "Bindings": [...]}
11.x   the same with "I/O Tensors" for "Bindings", and "Format/Datatype" split into two keys
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from rescompile.backends.inspection import residual_adds

_ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]+)\]")


def fused_adds(information: str, model: Path, *, integer: bool) -> int | None:
    """Number of residual adds that are computed together with a convolution; None where the JSON does not tell.

    Args:
        information: ``EngineInspector.get_engine_information`` as JSON, of an engine with detailed verbosity.
        model: the deployable graph that the engine was built from.
        integer: count only layers that read INT8.
    """
    import onnx

    loaded = onnx.load(model, load_external_data=False)
    convolutions = {node.name for node in loaded.graph.node if node.op_type == "Conv"}
    return count_fused(information, residual_adds(loaded), convolutions, integer=integer)


def count_fused(information: str, adds: set[str], convolutions: set[str], *, integer: bool) -> int | None:
    """``fused_adds`` for the given names of residual adds and convolutions."""
    layers = json.loads(information).get("Layers", [])
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    named = [(layer, onnx_names(layer)) for layer in detailed]
    if not any(adds & names for _, names in named):
        return None
    fused = [
        adds & names for layer, names in named if convolutions & names and (reads_int8(layer) or not integer)
    ]
    return len(set().union(*fused))


def onnx_names(layer: dict[str, Any]) -> set[str]:
    """Names of the ONNX nodes that ``layer`` computes."""
    parts = re.split(r"\s*\+\s*", layer.get("Name", ""))
    return {part.strip() for part in parts} | set(_ONNX_LAYER.findall(layer.get("Metadata", "")))


def reads_int8(layer: dict[str, Any]) -> bool:
    """Whether an input of ``layer`` is INT8."""
    types = (
        str(value)
        for tensor in layer.get("Inputs", [])
        if isinstance(tensor, dict)
        for key, value in tensor.items()
        if "type" in key.lower()
    )
    return any("int8" in text.lower().replace("uint8", "") for text in types)
