"""Reads ONNX files that rescompile wrote."""

from __future__ import annotations

from pathlib import Path

import onnx

from rescompile.errors import GraphError
from rescompile.graph.shared.hazards import hazard_in
from rescompile.graph.shared.protobuf_size import has_too_many_messages

REMEDY = "pass a graph that rescompile made"


def read_graph(path: Path, content: bytes | None = None) -> onnx.ModelProto:
    """The ONNX graph in ``path``, which has this ``content`` where it was read already.

    Raises:
        GraphError: the file cannot be read, is not an ONNX graph of one input with an output, or has weights in other
            files.
    """
    from google.protobuf.message import DecodeError

    try:
        content = path.read_bytes() if content is None else content
        if has_too_many_messages(content, onnx.ModelProto.DESCRIPTOR):
            raise GraphError(f"{path} has more parts than any network; {REMEDY}")
        proto = onnx.load_from_string(content)
    except (OSError, DecodeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise GraphError(f"{path} cannot be read as ONNX ({reason}); {REMEDY}") from None
    if words := hazard_in(proto):
        raise GraphError(f"{path} {words}; {REMEDY}")
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [entry for entry in proto.graph.input if entry.name not in constants]
    if len(inputs) != 1 or not proto.graph.output:
        raise GraphError(f"{path} is not a network with one image input and an output; {REMEDY}")
    return proto
