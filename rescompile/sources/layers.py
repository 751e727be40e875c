"""The layers in a state_dict, found by the order and shapes of its tensors, and joined to a plan of the network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from rescompile.models.planned import BlockPlan, ConvWeights, HeadLayer, NormWeights, Plan
from rescompile.sources.torchvision_names import listing

_SHORTCUT = re.compile(r"down_?sample|short_?cut|skip|proj|identity|residual_conv|match", re.IGNORECASE)
_GATE = re.compile(r"^(.*)\.(se|se_module|se_layer|se_block|attn|attention)\.", re.IGNORECASE)
_TORCHVISION = re.compile(r"^(conv1|bn1|layer\d+|fc)\.")
_POOLED = re.compile(r"\.downsample\.1$")


@dataclass(frozen=True, eq=False)
class Layer:
    """A module with weights."""

    name: str
    kind: Literal["conv", "norm", "linear"]
    tensors: Mapping[str, Tensor]

    @property
    def weight(self) -> Tensor:
        """Its weight."""
        return self.tensors["weight"]


class UnreadableError(Exception):
    """The layers do not make a network of a form that is known; the text says why."""


def has_torchvision_names(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names say what each layer does."""
    return all(_TORCHVISION.match(name) for name in state_dict) and "layer1.0.conv1.weight" in state_dict


def read_plan(state_dict: Mapping[str, Tensor], dead: frozenset[str] = frozenset()) -> tuple[Plan, list[str]]:
    """The plan of a network with torchvision's or anyone's names, and notes on what was left out.

    ``dead`` names the norms that no batch has passed in training: they and their convolutions are not used.

    Raises:
        UnreadableError: no plan fits.
    """
    known = has_torchvision_names(state_dict)
    names = sorted(state_dict, key=_torchvision_order) if known else list(state_dict)
    layers, strangers = _layers(names, state_dict)
    layers, notes = _without_dead(layers, dead)
    if strangers:
        inside = {name.partition(".")[0] for name in (layer.name for layer in layers)}
        bad = [name for name in strangers if name.partition(".")[0] in inside]
        if bad:
            raise UnreadableError(
                f"{listing(bad)} belong to no convolution, batch norm or fully connected layer"
            )
        notes.append(f"the file holds {listing(strangers)} outside of the network, which were left out")
    gates = _gates(layers)
    taken = {id(layer) for pair in gates.values() for layer in pair}
    layers = [layer for layer in layers if id(layer) not in taken]
    body, head = _split(layers, known=known)
    return _Joiner(body, head, gates, known=known).plan(), notes


def _torchvision_order(name: str) -> tuple[object, ...]:
    """conv1, bn1, layer1 …, fc; in a block conv1, bn1, conv2 …, then the shortcut."""
    parts = name.split(".")
    first = {"conv1": 0, "bn1": 1, "fc": 99}.get(parts[0], 2)
    key: list[object] = [first]
    for part in parts[:-1] if first != 2 else [parts[0][5:], *parts[1:-1]]:
        number = re.search(r"\d+$", part)
        word = part.rstrip("0123456789")
        late = word in {"downsample", "se"}
        key.append((late, int(number[0]) if number else 0, word != "conv", word))
    return tuple(key)


def _layers(names: Sequence[str], state: Mapping[str, Tensor]) -> tuple[list[Layer], list[str]]:
    modules: dict[str, dict[str, Tensor]] = {}
    for name in names:
        module, _, last = name.rpartition(".")
        modules.setdefault(module, {})[last] = state[name]
    layers: list[Layer] = []
    strangers: list[str] = []
    for module, tensors in modules.items():
        weight = tensors.get("weight")
        statistics = {"running_mean", "running_var"}
        if set(tensors) in (statistics, statistics | {"weight", "bias"}):
            layers.append(Layer(module, "norm", tensors))
        elif weight is not None and weight.ndim in (2, 4) and set(tensors) <= {"weight", "bias"}:
            layers.append(Layer(module, "conv" if weight.ndim == 4 else "linear", tensors))
        else:
            strangers.extend(f"{module}.{last}".removeprefix(".") for last in tensors)
    return layers, strangers


def _without_dead(layers: list[Layer], dead: frozenset[str]) -> tuple[list[Layer], list[str]]:
    dropped: set[int] = set()
    for index, layer in enumerate(layers):
        if layer.kind == "norm" and layer.name in dead:
            before = layers[index - 1] if index else None
            mine = (
                before is not None and before.kind == "conv" and before.weight.shape[0] == len(layer.weight)
            )
            dropped |= {index, index - 1} if mine else {index}
    if not dropped:
        return layers, []
    names = [layers[index].name for index in sorted(dropped)]
    kept = [layer for index, layer in enumerate(layers) if index not in dropped]
    return kept, [
        f"{listing(names)} were never used in training (their norms have seen no batch) and are left out"
    ]


def _gates(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """Squeeze-and-excitation layers by the name of their block."""
    found: dict[str, list[Layer]] = {}
    for layer in layers:
        match = _GATE.match(layer.name)
        if match is not None:
            found.setdefault(match[1], []).append(layer)
    for block, pair in found.items():
        if [layer.kind for layer in pair] not in (["conv", "conv"], ["linear", "linear"]):
            raise UnreadableError(f"the attention of {block} is not squeeze-and-excitation of two layers")
    return found


def _split(layers: list[Layer], *, known: bool) -> tuple[list[Layer], list[Layer]]:
    """The convolutional part and the head."""
    if known:
        head = [layer for layer in layers if layer.name == "fc" or layer.name.startswith("fc.")]
        return [layer for layer in layers if layer not in head], head
    at = next((index for index, layer in enumerate(layers) if layer.kind == "linear"), len(layers))
    if any(layer.kind == "conv" for layer in layers[at:]):
        raise UnreadableError("fully connected layers stand between the convolutions")
    return layers[:at], layers[at:]


class _Joiner:
    def __init__(
        self, body: list[Layer], head: list[Layer], gates: dict[str, list[Layer]], *, known: bool
    ) -> None:
        self._head, self._gates, self._known = head, gates, known
        convs = [layer for layer in body if layer.kind == "conv"]
        self._shortcuts = [conv for conv in convs if _SHORTCUT.search(conv.name)]
        self._main = [conv for conv in convs if conv not in self._shortcuts]
        if not any(conv.weight.shape[2] > 1 for conv in self._main[1:]):
            raise UnreadableError("it has no chain of convolutions")
        if all(conv.weight.shape[2] > 1 for conv in self._main if not _is_square_one(conv)):
            self._take_unnamed_shortcuts()
        self._norms = self._norms_of(body)

    def _take_unnamed_shortcuts(self) -> None:
        """In a chain of basic blocks, a 1x1 convolution is a shortcut whatever its name is; bottlenecks have three."""
        ones = [conv for conv in self._main if _is_square_one(conv)]
        others = len(self._main) - len(ones)
        if ones and len(ones) * 3 < others:
            self._shortcuts += ones
            self._main = [conv for conv in self._main if conv not in ones]

    def _norms_of(self, body: list[Layer]) -> dict[int, Layer]:
        """The norm behind each convolution, by the convolution's identity: the earliest that has none yet."""
        found: dict[int, Layer] = {}
        waiting: list[Layer] = []
        last_shortcut: Layer | None = None
        for layer in body:
            if layer.kind == "conv":
                shortcut = layer in self._shortcuts
                last_shortcut = layer if shortcut else last_shortcut
                waiting += [] if shortcut else [layer]
                continue
            width = len(layer.tensors["running_mean"])
            of_shortcut = last_shortcut is not None and (
                _SHORTCUT.search(layer.name) is not None
                or not any(len(each.weight) == width for each in waiting)
            )
            if of_shortcut and last_shortcut is not None and len(last_shortcut.weight) == width:
                found[id(last_shortcut)] = layer
                last_shortcut = None
                continue
            conv = next((each for each in waiting if len(each.weight) == width), None)
            if conv is None:
                raise UnreadableError(
                    f"the norm '{layer.name}' of {width} channels stands behind no convolution"
                )
            waiting.remove(conv)
            found[id(conv)] = layer
        bare = [conv for conv in waiting if "bias" not in conv.tensors]
        if bare and len(waiting) == len(self._main):
            raise UnreadableError("its convolutions have neither norm nor bias")
        if waiting and len(waiting) != len(self._main) and waiting != self._main[-1:]:
            raise UnreadableError(
                f"some convolutions have a norm, but not {listing(each.name for each in waiting)}"
            )
        return found

    def plan(self) -> Plan:
        count = self._stem_count()
        stem, rest = self._main[:count], self._main[count:]
        channels = int(stem[0].weight.shape[1])
        stems: list[ConvWeights] = []
        for layer in stem:
            stems.append(self._conv(layer, channels))
            channels = stems[-1].outputs
        groups = self._grouped(rest)
        shortcuts = self._assigned(groups)
        blocks: list[BlockPlan] = []
        widths = [len(group[-1].weight) for group in groups]
        for index, group in enumerate(groups):
            wider = index > 0 and widths[index] != widths[index - 1]
            blocks.append(self._block(group, shortcuts.get(index), channels, 2 if wider else 1))
            channels = blocks[-1].convs[-1].outputs
        if self._gates and sum(block.gate is not None for block in blocks) != len(self._gates):
            raise UnreadableError("an attention belongs to no block")
        deep = len(stem) == 3
        large = stems[0].kernel == 7 or deep
        head, concat = self._head_layers(channels)
        return Plan(
            stem=tuple(stems), stem_stride=2 if large else 1, maxpool=large, blocks=tuple(blocks), head=head,
            concat_pool=concat,
        )  # fmt: skip

    def _stem_count(self) -> int:
        if self._known:
            return sum(conv.name.startswith("conv1") for conv in self._main)
        kernels = [int(conv.weight.shape[2]) for conv in self._main]
        count = kernels.index(1) if 1 in kernels else 1
        if count not in (1, 3):
            raise UnreadableError(f"it begins with {count} convolutions before its first block")
        return count

    def _grouped(self, rest: list[Layer]) -> list[list[Layer]]:
        """Bottlenecks of three convolutions, basic blocks of two, or single convolutions where two do not divide."""
        kernels = [int(conv.weight.shape[2]) for conv in rest]
        if 1 in kernels:
            size = 3
            if len(rest) % 3 or any((k == 1) != (i % 3 != 1) for i, k in enumerate(kernels)):
                raise UnreadableError("its blocks are neither pairs of 3x3 convolutions nor 1x1, 3x3, 1x1")
        else:
            size = 1 if len(rest) % 2 else 2
        return [rest[at : at + size] for at in range(0, len(rest), size)]

    def _assigned(self, groups: list[list[Layer]]) -> dict[int, Layer]:
        found: dict[int, Layer] = {}
        for shortcut in self._shortcuts:
            outputs, inputs = shortcut.weight.shape[:2]
            fits = [
                index
                for index, group in enumerate(groups)
                if index not in found
                and len(group[-1].weight) == outputs
                and (index == 0 or len(groups[index - 1][-1].weight) == inputs)
            ]
            if not fits:
                raise UnreadableError(f"the shortcut '{shortcut.name}' fits no block")
            name = shortcut.name
            found[max(fits, key=lambda at: (_common(name, groups[at][0].name), -at))] = shortcut
        return found

    def _block(self, group: list[Layer], shortcut: Layer | None, channels: int, stride: int) -> BlockPlan:
        inputs, convs = channels, []
        for layer in group:
            convs.append(self._conv(layer, channels))
            channels = convs[-1].outputs
        first = group[0].name.rpartition(".")[0]
        gate = next(
            (pair for block, pair in self._gates.items() if block == first or first.startswith(f"{block}.")),
            None,
        )
        gates = None
        if gate is not None:
            squeezed = self._conv(gate[0], channels)
            gates = (squeezed, self._conv(gate[1], squeezed.outputs))
            if gates[1].outputs != channels:
                raise UnreadableError(f"the attention '{gate[1].name}' does not fit its block")
        pooled = shortcut is not None and _POOLED.search(shortcut.name) is not None
        return BlockPlan(
            convs=tuple(convs), shortcut=None if shortcut is None else self._conv(shortcut, inputs), pooled=pooled,
            gate=gates, stride=stride,
        )  # fmt: skip

    def _conv(self, layer: Layer, channels: int) -> ConvWeights:
        weight = layer.weight if layer.weight.ndim == 4 else layer.weight[:, :, None, None]
        groups, rest = divmod(channels, int(weight.shape[1]))
        kernel, other = weight.shape[2:]
        if rest or not groups or len(weight) % groups or kernel != other or kernel % 2 == 0:
            raise UnreadableError(
                f"'{layer.name}' of shape {list(weight.shape)} does not fit the {channels} channels in front of it"
            )
        norm = self._norms.get(id(layer))
        return ConvWeights(weight, layer.tensors.get("bias"), norm_weights(norm) if norm else None, groups)

    def _head_layers(self, channels: int) -> tuple[tuple[HeadLayer, ...], bool]:
        if not self._head:
            return (), False
        first = self._head[0]
        inputs = int(first.weight.shape[1] if first.kind != "norm" else len(first.weight))
        if inputs not in (channels, 2 * channels):
            raise UnreadableError(
                f"'{first.name}' reads {inputs} values, but the last block has {channels} channels"
            )
        layers: list[HeadLayer] = []
        open_relu = False
        for layer, following in pairwise([*self._head, None]):
            assert layer is not None
            open_relu = open_relu or layer.kind != "norm"
            free = open_relu and following is not None and _gap(layer.name, following.name)
            if free:
                open_relu = False
            if layer.kind == "norm":
                layers.append(HeadLayer(None, norm_weights(layer), free))
                continue
            weight = layer.weight.flatten(1)
            if inputs != weight.shape[1]:
                raise UnreadableError(f"'{layer.name}' does not read what the layer in front of it writes")
            bias = layer.tensors.get("bias")
            layers.append(HeadLayer((weight, torch.zeros(len(weight)) if bias is None else bias), None, free))
            inputs = len(weight)
        return tuple(layers), int(first.weight.shape[-1]) == 2 * channels


def norm_weights(layer: Layer) -> NormWeights:
    """The four vectors of a norm; without scale and shift they are one and zero."""
    mean, var = layer.tensors["running_mean"], layer.tensors["running_var"]
    weight, bias = layer.tensors.get("weight"), layer.tensors.get("bias")
    return NormWeights(
        torch.ones_like(mean) if weight is None else weight,
        torch.zeros_like(mean) if bias is None else bias,
        mean,
        var,
    )


def _is_square_one(conv: Layer) -> bool:
    return conv.weight.shape[2:] == (1, 1)


def _common(one: str, other: str) -> int:
    """Length of the common beginning of two names."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _gap(name: str, following: str) -> bool:
    """Whether a module without weights stands between two of a Sequential."""
    places = [each.rpartition(".")[2] for each in (name, following)]
    if not all(place.isdigit() for place in places):
        raise UnreadableError(f"nothing says what stands between '{name}' and '{following}'")
    return int(places[1]) - int(places[0]) > 1
