"""What a graph carries about its own tensors: entries of ``ModelProto.metadata_props`` under a prefix of ours."""

from __future__ import annotations

from collections.abc import Mapping

import onnx


def notes_of(model: onnx.ModelProto, prefix: str) -> dict[str, str]:
    """Tensor name to text, of the entries whose key is ``prefix`` and that name."""
    return notes_under({entry.key: entry.value for entry in model.metadata_props}, prefix)


def notes_under(metadata: Mapping[str, str], prefix: str) -> dict[str, str]:
    """The same of ``metadata``, as ``surgeon.read`` keeps it beside a graph."""
    return {key.removeprefix(prefix): text for key, text in metadata.items() if key.startswith(prefix)}
