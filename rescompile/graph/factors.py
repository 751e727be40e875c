"""Per-channel factors of an equalized graph: what turns a tensor's values back into the unit of the fp32 network.

Equalization lets a graph compute ``relu(x)[c] / f[c]`` where the network has ``relu(x)[c]``. Whoever compares such a
tensor with another graph's has to undo that, so the graph itself carries ``f`` in ``ModelProto.metadata_props``: key
``rescompile.factors.<tensor>``, value base64 of C float32, little-endian. ``graph.surgeon`` keeps these entries.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from rescompile.errors import GraphError
from rescompile.graph.notes import notes_of
from rescompile.graph.vocabulary import METADATA_PREFIX

PREFIX = f"{METADATA_PREFIX}factors."


def set_factors(model: onnx.ModelProto, factors: Mapping[str, NDArray[np.floating]]) -> None:
    """Let ``model`` carry ``factors`` [C] by tensor name, in place of those that it carried.

    Raises:
        ValueError: factors that are not one positive finite number a channel.
    """
    others = [entry for entry in model.metadata_props if not entry.key.startswith(PREFIX)]
    texts = {PREFIX + tensor: _encoded(tensor, values) for tensor, values in sorted(factors.items())}
    kept = [onnx.StringStringEntryProto(key=entry.key, value=entry.value) for entry in others]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.extend(
        onnx.StringStringEntryProto(key=key, value=text) for key, text in texts.items()
    )


def factors_of(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Tensor name to factors [C]; original value = channel value * factor. Empty for a graph without any.

    Raises:
        GraphError: an entry that is damaged.
    """
    return {name: _decoded(name, text) for name, text in notes_of(model, PREFIX).items()}


def in_original_unit(
    tensor: str, values: NDArray[np.floating], factors: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.floating]:
    """``values`` [C, ...] of one image times the factors of ``tensor``; as they are where it has none.

    Raises:
        GraphError: the tensor has another number of channels than factors.
    """
    if tensor not in factors:
        return values
    factor = factors[tensor]
    if len(factor) != len(values):
        raise GraphError(
            f"'{tensor}' has {len(values)} channels and {len(factor)} factors in the graph's metadata; "
            "build the engine again"
        )
    scaled: NDArray[np.float32] = values.astype(np.float32) * factor.reshape(-1, *[1] * (values.ndim - 1))
    return scaled


def _encoded(tensor: str, values: NDArray[np.floating]) -> str:
    array = np.asarray(values, dtype="<f4")
    if not _usable(array):
        raise ValueError(f"factors of '{tensor}' must be [C], positive and finite, not {array!r}")
    return base64.b64encode(array.tobytes()).decode("ascii")


def _decoded(tensor: str, text: str) -> NDArray[np.float32]:
    try:
        array = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)
    except (binascii.Error, ValueError) as error:
        raise GraphError(
            f"the graph's factors of '{tensor}' are damaged ({error}); build the engine again"
        ) from None
    if not _usable(array):
        raise GraphError(
            f"the graph's factors of '{tensor}' are not all positive and finite; build the engine again"
        )
    return array


def _usable(array: NDArray[np.float32]) -> bool:
    return array.ndim == 1 and array.size > 0 and bool(np.isfinite(array).all() and (array > 0).all())
