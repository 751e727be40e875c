"""Weights under unknown names, matched to a network by their order and shapes.

Frameworks save a network's layers in the order in which it defines them. A file whose convolutions, norms and their
shapes come in exactly the order of a known ResNet is that ResNet: with a projection in every block that changes shape,
no other network has this sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from rescompile.errors import UsageError
from rescompile.models.registry import IMAGENET_SPECS, cifar_spec, create
from rescompile.models.specification import BlockKind, ModelSpec

Shape = tuple[int, ...]
Unit = tuple[str, Shape]
"""A layer by its kind and the shape of its weight: ``conv``, ``norm`` or ``linear``."""
_PROJECTIONS: dict[BlockKind, int] = {"basic": 2, "bottleneck": 3}
"""Shortcuts with a convolution in a CIFAR network of three stages."""


def layers_of(tensors: Mapping[str, Tensor]) -> dict[str, Unit]:
    """The layers with weights, by the prefix of their names and in the order of the file."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, _, role = name.rpartition(".")
        found.setdefault(prefix, {})[role] = tensor
    return {prefix: unit for prefix, roles in found.items() if (unit := _unit(roles)) is not None}


def renamed_by_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """``tensors`` with torchvision's names for the layers of a known ResNet; None where the order is no such ResNet's.

    Layers behind the last block keep their names.
    """
    layers = layers_of(tensors)
    kinds = [unit for unit in layers.values() if unit[0] != "linear"]
    for spec in _candidates(layers):
        for known in _orders(spec):
            trunk = list(known)
            if [known[name] for name in trunk] != kinds[: len(trunk)] or len(kinds) < len(trunk):
                continue
            prefixes = [prefix for prefix, unit in layers.items() if unit[0] != "linear"][: len(trunk)]
            names = dict(zip(prefixes, trunk, strict=True))
            return {
                f"{names.get(prefix, prefix)}.{role}": tensor
                for name, tensor in tensors.items()
                for prefix, _, role in [name.rpartition(".")]
            }
    return None


def _unit(roles: Mapping[str, Tensor]) -> Unit | None:
    weight = roles.get("weight")
    if "running_mean" in roles:
        return "norm", tuple(roles["running_mean"].shape)
    if weight is None or weight.ndim not in {2, 4}:
        return None
    return ("conv" if weight.ndim == 4 else "linear"), tuple(weight.shape)


def _candidates(layers: Mapping[str, Unit]) -> Iterator[ModelSpec]:
    convs = [shape for kind, shape in layers.values() if kind == "conv"]
    if not convs:
        return
    if convs[0][2:] == (7, 7):
        yield from IMAGENET_SPECS.values()
        return
    for block, projections in _PROJECTIONS.items():
        try:
            spec = cifar_spec(len(convs) - 1 - projections + 2, block)
        except UsageError:
            continue
        yield replace(spec, shortcut="B")


def _orders(spec: ModelSpec) -> Iterator[dict[str, Unit]]:
    """The trunk's layers in torchvision's order, and with each block's shortcut in front of its branch."""
    with torch.device("meta"):
        layers = layers_of(create(spec, 2).state_dict())
    trunk = {name: unit for name, unit in layers.items() if name != "fc"}
    yield trunk

    def place(name: str) -> tuple[str, bool]:
        block = name.partition(".conv")[0].partition(".bn")[0].partition(".downsample")[0]
        return block, "downsample" not in name

    blocks = list(dict.fromkeys(place(name)[0] for name in trunk))
    ordered = sorted(trunk, key=lambda name: (blocks.index(place(name)[0]), place(name)[1]))
    yield {name: trunk[name] for name in ordered}
