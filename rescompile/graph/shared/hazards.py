"""Hazards for which graphs are refused: reading other files, never ending, filling the memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rescompile.graph.shared.protobuf_size import has_too_many_messages

if TYPE_CHECKING:
    import onnx

LOOPS = {"Loop", "Scan"}
_LOCATION = b"\x0a\x08location"
"""The key of a file's name in a tensor of ONNX, as it is serialized."""
_MAKERS = {"ConstantOfShape", "EyeLike", "Expand", "OneHot", "Pad", "Range", "Resize", "Tile", "Upsample"}
"""Operators whose output may be larger than their inputs."""
_MOST_VALUES = 1 << 30


def hazard_of(graph: bytes) -> str | None:
    """The hazard of a serialized ONNX graph, as the end of a sentence; None if it has none.

    The graph is parsed only if it may have one, so that the runtime need not import onnx.
    """
    if _LOCATION not in graph and not any(name.encode() in graph for name in LOOPS):
        return None
    import onnx

    if has_too_many_messages(graph, onnx.ModelProto.DESCRIPTOR):
        return "has more parts than any network"
    return hazard_in(onnx.load_from_string(graph))


def hazard_in(model: onnx.ModelProto) -> str | None:
    """``hazard_of`` a graph that was parsed."""
    for name in _external_files(model):
        return f"has weights in another file, {name!r}, which no hash covers"
    return endless_in(model)


def endless_in(model: onnx.ModelProto) -> str | None:
    """A loop in ``model``, as the end of a sentence."""
    for node in _messages(model, "NodeProto"):
        if node.op_type in LOOPS:
            return f"has a {node.op_type} ('{node.name}'), and nothing bounds how often it runs"
    return None


def inflated_in(model: onnx.ModelProto, size: int) -> str | None:
    """A constant or tensor in ``model``, from ``size`` bytes, that is far larger; as the end of a sentence."""
    import onnx
    from onnx import helper

    claimed = 0
    for tensor in _messages(model, "TensorProto"):
        if tensor.data_type in helper.get_all_tensor_dtypes():
            claimed += math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    for sparse in _messages(model, "SparseTensorProto"):
        claimed += 4 * math.prod(sparse.dims)
    if claimed > 2 * size + (1 << 20):
        return f"claims {claimed:,} bytes of constants, far more than its {size:,} bytes hold"
    if not any(node.op_type in _MAKERS for node in _messages(model, "NodeProto")):
        return None
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    for value in inferred.graph.value_info:
        sides = [side.dim_value for side in value.type.tensor_type.shape.dim]
        if math.prod(max(side, 1) for side in sides) > _MOST_VALUES:
            return f"has a tensor '{value.name}' of {sides} values, which no image network has"
    return None


def _external_files(model: onnx.ModelProto) -> Iterator[str]:
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    for tensor in _messages(model, "TensorProto"):
        if uses_external_data(tensor):
            yield ExternalDataInfo(tensor).location


def _messages(message: Any, kind: str) -> Iterator[Any]:
    """Every message of protobuf's type ``kind`` in ``message``: in attributes, inner graphs and functions, too."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for each in value if field.is_repeated else [value]:
            if field.message_type.name == kind:
                yield each
            yield from _messages(each, kind)
