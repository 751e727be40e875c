"""What was taken away from tensors of full range: the constant that turns their values back into those of a ReLU.

``full_range`` lets a graph hold ``y - z`` where the network has ``y = relu(x)``. The graph carries z in
``ModelProto.metadata_props``: key ``rescompile.offset.<tensor>``, value the number as ``float.hex``.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from rescompile.errors import GraphError
from rescompile.graph.notes import notes_of
from rescompile.graph.vocabulary import METADATA_PREFIX

PREFIX = f"{METADATA_PREFIX}offset."
ZERO_POINT = -128
"""Where zero is stored in a tensor of full range."""


def offsets_of(model: onnx.ModelProto) -> dict[str, float]:
    """Tensor name to offset: original value = max(value + offset, 0). Empty for a graph without any.

    Raises:
        GraphError: an entry that is damaged.
    """
    return {name: _offset(name, text) for name, text in notes_of(model, PREFIX).items()}


def without_offset(
    tensor: str, values: NDArray[np.floating], offsets: Mapping[str, float]
) -> NDArray[np.floating]:
    """``values`` of one tensor as they are where it has no offset, else as the ReLU would give them."""
    if tensor not in offsets:
        return values
    restored: NDArray[np.float32] = np.maximum(values.astype(np.float32) + np.float32(offsets[tensor]), 0)
    return restored


def _offset(tensor: str, text: str) -> float:
    try:
        offset = float.fromhex(text)
    except ValueError:
        offset = float("nan")
    if not 0 < offset < float("inf"):
        raise GraphError(f"the graph's offset of '{tensor}' is damaged ({text!r}); build the engine again")
    return offset
