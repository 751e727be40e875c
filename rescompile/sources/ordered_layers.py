"""Layers in the order of the network: the convolutional part, squeeze-and-excitation, and the head."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rescompile.sources.layers import GATE, TRUNK, Layer
from rescompile.wording import listing


class UnreadableError(Exception):
    """The layers do not form a network of a known kind; the text says why."""


def is_known(layers: Sequence[Layer]) -> bool:
    """Whether names are torchvision's up to the head; a norm behind the last block may belong to either."""
    trunk = [layer for layer in layers if TRUNK.match(layer.name)]
    head = [layer for layer in layers if not TRUNK.match(layer.name)]
    if all(layer.name != "layer1.0.conv1" for layer in trunk):
        return False
    widest = max(layer.width for layer in trunk)
    return not head or head[0].kind == "linear" or (head[0].kind == "norm" and head[0].width == 2 * widest)


def _torchvision_order(layer: Layer) -> tuple[object, ...]:
    """conv1, bn1, layer1 …; in a block conv1, bn1, conv2 …, then the shortcut."""
    parts = layer.name.split(".")
    first = {"conv1": 0, "bn1": 1}.get(parts[0], 2)
    key: list[object] = [first]
    for part in parts if first != 2 else [parts[0][5:], *parts[1:]]:
        number = re.search(r"\d+$", part)
        word = part.rstrip("0123456789")
        late = word in {"downsample", "se"}
        key.append((late, int(number[0]) if number else 0, word != "conv", word))
    return tuple(key)


def without_dead(layers: list[Layer], dead: frozenset[str]) -> tuple[list[Layer], list[str]]:
    """``layers`` without norms that no batch has passed and their convolutions, and a note that names them."""
    dropped: set[int] = set()
    for index, layer in enumerate(layers):
        if layer.kind == "norm" and layer.name in dead:
            before = layers[index - 1] if index else None
            mine = before is not None and before.kind == "conv" and before.width == layer.width
            dropped |= {index, index - 1} if mine else {index}
    if not dropped:
        return layers, []
    names = [layers[index].name for index in sorted(dropped)]
    kept = [layer for index, layer in enumerate(layers) if index not in dropped]
    return kept, [
        f"{listing(names)} were never used in training (their norms have seen no batch) and are left out"
    ]


def gates(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Squeeze-and-excitation layers by the name of their block."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        match = GATE.match(layer.name)
        if match is not None:
            found.setdefault(match[1], []).append(layer)
    for block, pair in found.items():
        if [layer.kind for layer in pair] not in (["conv", "conv"], ["linear", "linear"]):
            raise UnreadableError(f"the attention of {block} is not squeeze-and-excitation of two layers")
    return found


def split(layers: list[Layer], *, known: bool) -> tuple[list[Layer], list[Layer]]:
    """The convolutional part and the head."""
    if known:
        head = [layer for layer in layers if not TRUNK.match(layer.name)]
        places = [layer.name.rpartition(".") for layer in head]
        if len({parent for parent, _, _ in places}) == 1 and all(place.isdigit() for _, _, place in places):
            head.sort(
                key=lambda layer: int(layer.name.rpartition(".")[2])
            )  # safetensors sorts "10" before "2"
        return sorted(set(layers) - set(head), key=_torchvision_order), head
    at = next((index for index, layer in enumerate(layers) if layer.kind == "linear"), len(layers))
    if any(layer.kind == "conv" for layer in layers[at:]):
        raise UnreadableError("fully connected layers stand between the convolutions")
    return layers[:at], layers[at:]
