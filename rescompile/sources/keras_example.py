"""The structure of Keras's own CIFAR ResNet, for files that hold its weights alone.

The network of Keras's example ``cifar10_resnet`` (version 1), which MLPerf Tiny took over, is known by its shapes: a
bias in each convolution, a 1x1 convolution without batch norm where a stage begins, and a first convolution that is
as wide as the first stage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_NUMBERED = re.compile(r"(conv2d|batch_normalization|dense)(?:_(\d+))?")
_SIDE = 32
_EPSILON = 1e-3
"""Keras's default, which the example keeps."""
Shape = tuple[int, ...]


def in_order(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of layers with Keras's automatic names by class, in the order of their numbers."""
    found: dict[str, list[tuple[int, str]]] = {"conv2d": [], "batch_normalization": [], "dense": []}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match:
            found[match[1]].append((int(match[2] or 0), name))
    return {kind: [name for _, name in sorted(numbered)] for kind, numbered in found.items()}


def example_layers(shapes: Mapping[str, list[Shape]]) -> list[dict[str, Any]] | None:
    """The layers of the example as a Keras configuration, where the ``shapes`` of all weights are its own."""
    names = in_order(list(shapes))
    convs, norms, dense = (iter(names[kind]) for kind in ("conv2d", "batch_normalization", "dense"))
    stages, rest = divmod(len(names["conv2d"]) - 3, 2)
    if rest or stages < 3 or stages % 3 or len(names["batch_normalization"]) != 2 * stages + 1:
        return None
    per_stage = stages // 3
    stem = shapes[names["conv2d"][0]][0]
    layers: list[dict[str, Any]] = [
        _layer("InputLayer", "input", [], batch_shape=[None, _SIDE, _SIDE, stem[2]])
    ]

    def add(kind: str, name: str, inputs: Sequence[str], **config: Any) -> str:
        layers.append(_layer(kind, name, inputs, **config))
        return name

    def conv(x: str, strides: int = 1, kernel: int = 3) -> str:
        sizes = {"kernel_size": [kernel, kernel], "strides": [strides, strides], "padding": "same"}
        return add("Conv2D", next(convs), [x], **sizes)

    def norm(x: str) -> str:
        return add("BatchNormalization", next(norms), [x], epsilon=_EPSILON)

    def relu(x: str) -> str:
        return add("Activation", f"{x}.relu", [x], activation="relu")

    x = relu(norm(conv("input")))
    for block in range(stages):
        strides = 2 if block and block % per_stage == 0 else 1
        y = norm(conv(relu(norm(conv(x, strides)))))
        shortcut = conv(x, strides, kernel=1) if strides == 2 else x
        x = relu(add("Add", f"add.{block}", [shortcut, y]))
    x = add("GlobalAveragePooling2D", "pool", [x])
    add("Dense", next(dense, ""), [x], activation="softmax")
    return layers if _shapes_of(layers, shapes) == dict(shapes) else None


def _layer(kind: str, name: str, inputs: Sequence[str], **config: Any) -> dict[str, Any]:
    nodes = [[[x, 0, 0, {}] for x in inputs]] if inputs else []
    return {"class_name": kind, "config": {"name": name, **config}, "inbound_nodes": nodes}


def _shapes_of(layers: list[dict[str, Any]], shapes: Mapping[str, list[Shape]]) -> dict[str, list[Shape]]:
    """The shapes that the example has where its stem, its stages and its classifier are as wide as in ``shapes``."""
    widths: dict[str, int] = {}
    found: dict[str, list[Shape]] = {}
    for layer in layers:
        kind, config = layer["class_name"], layer["config"]
        name = config["name"]
        before = [widths[node[0]] for call in layer["inbound_nodes"] for node in call]
        width = before[-1] if before else config["batch_shape"][3]
        if kind == "Conv2D":
            out = shapes[name][0][-1]
            found[name] = [(*config["kernel_size"], width, out), (out,)]
            width = out
        elif kind == "BatchNormalization":
            found[name] = [(width,)] * 4
        elif kind == "Dense":
            out = shapes[name][0][-1] if name in shapes else 0
            found[name] = [(width, out), (out,)]
        elif kind == "Add" and len(set(before)) > 1:
            return {}
        widths[name] = width
    return found
