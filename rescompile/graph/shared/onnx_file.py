"""Reads ONNX files that rescompile wrote."""

from __future__ import annotations

from pathlib import Path

import onnx

from rescompile.errors import GraphError

REMEDY = "pass a graph that rescompile made"


def read_graph(path: Path) -> onnx.ModelProto:
    """The ONNX graph in ``path``.

    Raises:
        GraphError: the file cannot be read, or is not an ONNX graph of one input with an output.
    """
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(path)
    except (OSError, DecodeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise GraphError(f"{path} cannot be read as ONNX ({reason}); {REMEDY}") from None
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [entry for entry in proto.graph.input if entry.name not in constants]
    if len(inputs) != 1 or not proto.graph.output:
        raise GraphError(f"{path} is not a network with one image input and an output; {REMEDY}")
    return proto
