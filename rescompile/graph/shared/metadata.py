"""Records of a graph about its tensors, so that their values can be compared with those of the fp32 network.

Entries of ``ModelProto.metadata_props``, one for each tensor that a stage changed; ``shared.editing`` keeps them:

    rescompile.factors.<tensor>     equalization: the graph holds x[c] / f[c]; base64 of C float32, little-endian
    rescompile.offset.<tensor>      full range: the graph holds relu(x) - z; z as ``float.hex``
    rescompile.channels.<tensor>    constant channels were added: the number of real ones, which come first
    rescompile.float.<node>         the reason why the node is not quantized
    rescompile.blocks               block names and the tensors that they end in, as JSON; networks of the paper's
                                    family have none, because there the names of the nodes say it
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from rescompile.errors import GraphError
from rescompile.graph.shared.names import METADATA_PREFIX

FACTORS = f"{METADATA_PREFIX}factors."
OFFSET = f"{METADATA_PREFIX}offset."
CHANNELS = f"{METADATA_PREFIX}channels."
FLOAT = f"{METADATA_PREFIX}float."
BLOCKS = f"{METADATA_PREFIX}blocks"
ZERO_POINT = -128
"""The integer that stands for zero in a tensor of full range."""
_AGAIN = "build the engine again"


def drop_entries(graph: gs.Graph, prefix: str) -> None:
    """Remove the entries under ``prefix`` from the metadata that ``editing.read`` keeps beside a graph."""
    kept = graph.rescompile_metadata.items()
    graph.rescompile_metadata = {key: text for key, text in kept if not key.startswith(prefix)}


def set_factors(model: onnx.ModelProto, factors: Mapping[str, NDArray[np.floating]]) -> None:
    """Record ``factors`` [C] by tensor name in ``model``, in place of those recorded so far.

    Raises:
        ValueError: factors that are not one positive finite number per channel.
    """
    props = {key: text for key, text in _metadata(model).items() if not key.startswith(FACTORS)}
    for tensor, values in sorted(factors.items()):
        array = np.asarray(values, dtype="<f4")
        if not _usable(array):
            raise ValueError(f"factors of '{tensor}' must be [C], positive and finite, not {array!r}")
        props[FACTORS + tensor] = base64.b64encode(array.tobytes()).decode("ascii")
    onnx.helper.set_model_props(model, props)


def factors_of(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    """Tensor name to factors [C]; original value = channel value * factor. Empty for a graph without any.

    Raises:
        GraphError: a damaged entry.
    """
    return {name: _factors(name, text) for name, text in _under(_metadata(model), FACTORS).items()}


def in_original_unit(
    tensor: str, values: NDArray[np.floating], factors: Mapping[str, NDArray[np.float32]]
) -> NDArray[np.floating]:
    """``values`` [C, ...] of one image times the factors of ``tensor``; unchanged where it has none.

    Raises:
        GraphError: the number of channels differs from the number of factors.
    """
    if tensor not in factors:
        return values
    factor = factors[tensor]
    if len(factor) != len(values):
        raise GraphError(
            f"'{tensor}' has {len(values)} channels and {len(factor)} factors in the graph's metadata; {_AGAIN}"
        )
    scaled: NDArray[np.float32] = values.astype(np.float32) * factor.reshape(-1, *[1] * (values.ndim - 1))
    return scaled


def offsets_of(model: onnx.ModelProto) -> dict[str, float]:
    """Tensor name to offset; original value = max(value + offset, 0). Empty for a graph without any.

    Raises:
        GraphError: a damaged entry.
    """
    return {name: _offset(name, text) for name, text in _under(_metadata(model), OFFSET).items()}


def without_offset(
    tensor: str, values: NDArray[np.floating], offsets: Mapping[str, float]
) -> NDArray[np.floating]:
    """``values`` of one tensor with its offset undone; unchanged where it has none."""
    if tensor not in offsets:
        return values
    restored: NDArray[np.float32] = np.maximum(values.astype(np.float32) + np.float32(offsets[tensor]), 0)
    return restored


def real_channels(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor name to the channels that the network itself has there; empty for a graph without constant channels.

    Raises:
        GraphError: a damaged entry.
    """
    return real_channels_in(_metadata(model))


def real_channels_in(metadata: Mapping[str, str]) -> dict[str, int]:
    """``real_channels`` from the metadata that ``editing.read`` keeps beside a graph."""
    return {name: _count(name, text) for name, text in _under(metadata, CHANNELS).items()}


def set_block_ends(model: onnx.ModelProto, ends: Mapping[str, str]) -> None:
    """Record the tensor that each block ends in."""
    onnx.helper.set_model_props(model, _metadata(model) | {BLOCKS: json.dumps(list(ends.items()))})


def block_ends(model: onnx.ModelProto) -> dict[str, str]:
    """Block name to the tensor at its end, in the order of execution; empty where the model records none.

    Raises:
        GraphError: a damaged entry.
    """
    text = _metadata(model).get(BLOCKS, "[]")
    try:
        return {str(name): str(tensor) for name, tensor in json.loads(text)}
    except (ValueError, TypeError) as error:
        raise GraphError(f"the graph's table of blocks is damaged ({error}); {_AGAIN}") from None


def set_float_reasons(model: onnx.ModelProto, reasons: Mapping[str, str]) -> None:
    """Record why nodes are not quantized, by node name, in place of what was recorded so far."""
    props = {key: text for key, text in _metadata(model).items() if not key.startswith(FLOAT)}
    onnx.helper.set_model_props(model, props | {FLOAT + name: reason for name, reason in reasons.items()})


def float_reasons(model: onnx.ModelProto) -> dict[str, str]:
    """Node name to the reason why it is not quantized; empty where every rule applies."""
    return _under(_metadata(model), FLOAT)


def float_reasons_in(metadata: Mapping[str, str]) -> dict[str, str]:
    """``float_reasons`` from the metadata that ``editing.read`` keeps beside a graph."""
    return _under(metadata, FLOAT)


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _under(metadata: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Tensor name to text, for the entries whose key begins with ``prefix``."""
    return {key.removeprefix(prefix): text for key, text in metadata.items() if key.startswith(prefix)}


def _factors(tensor: str, text: str) -> NDArray[np.float32]:
    try:
        array = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float32)
    except (binascii.Error, ValueError) as error:
        raise GraphError(f"the graph's factors of '{tensor}' are damaged ({error}); {_AGAIN}") from None
    if not _usable(array):
        raise GraphError(f"the graph's factors of '{tensor}' are not all positive and finite; {_AGAIN}")
    return array


def _usable(array: NDArray[np.float32]) -> bool:
    return array.ndim == 1 and array.size > 0 and bool(np.isfinite(array).all() and (array > 0).all())


def _offset(tensor: str, text: str) -> float:
    try:
        offset = float.fromhex(text)
    except ValueError:
        offset = float("nan")
    if not 0 < offset < float("inf"):
        raise GraphError(f"the graph's offset of '{tensor}' is damaged ({text!r}); {_AGAIN}")
    return offset


def _count(tensor: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise GraphError(f"the graph's channels of '{tensor}' are damaged ({text!r}); {_AGAIN}")
    return int(text)
