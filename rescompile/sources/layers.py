"""The modules with weights in a state_dict: what each is, by the roles and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor

_STATISTICS = {"running_mean", "running_var"}
_AFFINE = {"weight", "bias"}
GATE = re.compile(r"^(.*)\.(se|se_module|se_layer|se_block|attn|attention)\.", re.IGNORECASE)
"""Layers of squeeze-and-excitation, and the name of their block."""
TRUNK = re.compile(r"(conv1|bn1|layer\d+)(\.|$)")
"""torchvision's names of everything in front of the classifier."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A module with weights."""

    name: str
    kind: Literal["conv", "norm", "linear"]
    tensors: Mapping[str, Tensor]

    @property
    def weight(self) -> Tensor:
        """The weight of a convolution or a fully connected layer."""
        return self.tensors["weight"]

    @property
    def width(self) -> int:
        """Channels that it writes."""
        return len(self.tensors["running_mean" if self.kind == "norm" else "weight"])

    @property
    def kernel(self) -> int:
        """Side of a convolution's kernel; 1 for a fully connected layer."""
        return int(self.weight.shape[2]) if self.kind == "conv" else 1


def layers_of(tensors: Mapping[str, Tensor]) -> tuple[list[Layer], list[str]]:
    """The layers in the order of the file, and the names of the tensors that belong to none."""
    modules: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, role = name.rpartition(".")
        modules.setdefault(module, {})[role] = tensor
    layers: list[Layer] = []
    strangers: list[str] = []
    for module, roles in modules.items():
        weight = roles.get("weight")
        if set(roles) in (_STATISTICS, _STATISTICS | _AFFINE):
            layers.append(Layer(module, "norm", roles))
        elif weight is not None and weight.ndim in (2, 4) and set(roles) <= _AFFINE:
            layers.append(Layer(module, "conv" if weight.ndim == 4 else "linear", roles))
        else:
            strangers.extend(f"{module}.{role}".removeprefix(".") for role in roles)
    return layers, strangers


def in_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` in the order of the network, as far as names tell, if the file sorted them by name.

    safetensors does, and so loses the order of definition: block 10 comes before block 2, ``classifier`` before
    ``encoder``. Numbers are put in their order, and fully connected layers behind the convolutions.
    """
    if list(tensors) != sorted(tensors):
        return dict(tensors)
    names = sorted(tensors, key=_by_number)
    last = max((at for at, name in enumerate(names) if tensors[name].ndim == 4), default=0)
    early = {
        name.rpartition(".")[0]
        for name in names[:last]
        if name.endswith(".weight") and tensors[name].ndim == 2 and not GATE.match(name)
    }
    names.sort(key=lambda name: name.rpartition(".")[0] in early)
    return {name: tensors[name] for name in names}


def _by_number(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name)]


def linear_layers(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Fully connected layers, and 1x1 convolutions behind the blocks that serve as such, with their shapes."""
    found: dict[str, tuple[int, ...]] = {}
    for layer, following in pairwise([*layers_of(tensors)[0], None]):
        assert layer is not None
        if layer.kind == "conv" and layer.weight.shape[2:] != (1, 1):
            # a 1x1 convolution in front of a larger one is a part of the blocks
            found = {name: shape for name, shape in found.items() if len(shape) == 2}
        normed = following is not None and following.kind == "norm" and following.width == layer.width
        inner = layer.kind == "conv" and (normed or TRUNK.match(layer.name))
        if layer.kind != "norm" and layer.kernel == 1 and not inner and not GATE.match(layer.name):
            found[layer.name] = tuple(layer.weight.shape)
    return found
