"""The plan of a network from its state_dict: layers by order and shapes, joined to blocks.

Frameworks save a network's layers in the order in which it defines them. torchvision's names say the order themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from rescompile.models.planned import BlockPlan, ConvWeights, Plan
from rescompile.sources.head_layers import head_layers, norm_weights
from rescompile.sources.layers import Layer, layers_of
from rescompile.sources.ordered_layers import UnreadableError, gates, is_known, split, without_dead
from rescompile.wording import listing

_SHORTCUT = re.compile(r"down_?sample|short_?cut|skip|proj|identity|residual_conv|match", re.IGNORECASE)
_POOLED = re.compile(r"\.downsample\.1$")


class PlanFound(NamedTuple):
    """A plan, and what is known about it."""

    plan: Plan
    notes: list[str]
    """Sentences about what was left out."""
    known: bool
    """Whether torchvision's names say what each layer does."""


def read_plan(state_dict: Mapping[str, Tensor], dead: frozenset[str] = frozenset()) -> PlanFound:
    """The plan of a network with torchvision's or any other names.

    ``dead`` names the norms that no batch has passed in training: in networks of other names they and their
    convolutions are left out.

    Raises:
        UnreadableError: no plan fits.
    """
    layers, strangers = layers_of(state_dict)
    known = is_known(layers)
    layers, notes = (layers, []) if known else without_dead(layers, dead)
    if strangers:
        inside = {layer.name.partition(".")[0] for layer in layers}
        bad = [name for name in strangers if name.partition(".")[0] in inside]
        if bad:
            raise UnreadableError(
                f"{listing(bad)} belong to no convolution, batch norm or fully connected layer"
            )
        notes.append(f"the file holds {listing(strangers)} outside of the network, which were left out")
    return PlanFound(_Network(layers, known=known).plan(), notes, known)


def torchvision_layers(state_dict: Mapping[str, Tensor]) -> dict[str, str] | None:
    """torchvision's names for the layers of a usual ResNet under other names; None for other networks.

    With a norm directly behind every convolution, and a projection in every block that changes the width, no other
    network has this sequence. Layers behind the last block get no name.
    """
    try:
        layers, _ = layers_of(state_dict)
        return _Network(layers, known=False).names(layers)
    except UnreadableError:
        return None


class _Network:
    """Layers by their place: stem, blocks with their shortcuts and gates, norms by convolution, head."""

    def __init__(self, layers: list[Layer], *, known: bool) -> None:
        self._known, self._gates = known, gates(layers)
        taken = {id(layer) for pair in self._gates.values() for layer in pair}
        body, self._head = split([layer for layer in layers if id(layer) not in taken], known=known)
        convs = [layer for layer in body if layer.kind == "conv"]
        self._shortcuts = [conv for conv in convs if _SHORTCUT.search(conv.name)]
        self._main = [conv for conv in convs if conv not in self._shortcuts]
        if not any(conv.kernel > 1 for conv in self._main[1:]):
            raise UnreadableError("it has no chain of convolutions")
        if all(conv.kernel > 1 for conv in self._main if not _is_square_one(conv)):
            self._take_unnamed_shortcuts()
        self._norms = self._norms_of(body)
        count = self._stem_count()
        self._stem, self._groups = self._main[:count], self._grouped(self._main[count:])
        self._shortcut_of = self._assigned(self._groups)

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
        last_conv = max(index for index, layer in enumerate(body) if layer.kind == "conv")
        for index, layer in enumerate(body):
            if layer.kind == "conv":
                shortcut = layer in self._shortcuts
                last_shortcut = layer if shortcut else last_shortcut
                waiting += [] if shortcut else [layer]
                continue
            width = layer.width
            of_shortcut = last_shortcut is not None and (
                _SHORTCUT.search(layer.name) is not None or not any(each.width == width for each in waiting)
            )
            if of_shortcut and last_shortcut is not None and last_shortcut.width == width:
                found[id(last_shortcut)] = layer
                last_shortcut = None
                continue
            conv = next((each for each in waiting if each.width == width), None)
            if conv is None and index > last_conv:
                self._head = [*body[index:], *self._head]
                break
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

    def names(self, order: Sequence[Layer]) -> dict[str, str] | None:
        """See ``torchvision_layers``."""
        behind = {one.name: other for one, other in pairwise(order)}
        convs = [*self._main, *self._shortcuts]
        normed = all(self._norms.get(id(conv)) is behind.get(conv.name) is not None for conv in convs)
        if self._gates or len(self._stem) > 1 or not normed or not self._is_projected():
            return None
        found = {self._stem[0].name: "conv1"}
        stage = index = 0
        for at, group in enumerate(self._groups):
            stage, index = (stage + 1, 0) if at == 0 or self._widens(at) else (stage, index + 1)
            place = f"layer{stage}.{index}"
            found |= {conv.name: f"{place}.conv{number}" for number, conv in enumerate(group, 1)}
            if at in self._shortcut_of:
                found[self._shortcut_of[at].name] = f"{place}.downsample.0"
        norms = {
            behind[conv].name: name.replace("conv", "bn").replace("downsample.0", "downsample.1")
            for conv, name in found.items()
        }
        return found | norms

    def _widens(self, at: int) -> bool:
        """Whether a block writes more or fewer channels than the one in front of it."""
        return at > 0 and self._groups[at][-1].width != self._groups[at - 1][-1].width

    def _is_projected(self) -> bool:
        """Whether every block that changes the width, and nothing but such a block, has a projection."""
        before = [self._stem[-1], *(group[-1] for group in self._groups)]
        return all(
            (before[at].width != group[-1].width) == (at in self._shortcut_of)
            for at, group in enumerate(self._groups)
        )

    def plan(self) -> Plan:
        """The weights by place."""
        stem = self._stem
        channels = int(stem[0].weight.shape[1])
        stems: list[ConvWeights] = []
        for layer in stem:
            stems.append(self._conv(layer, channels))
            channels = stems[-1].outputs
        blocks: list[BlockPlan] = []
        for index, group in enumerate(self._groups):
            stride = 2 if self._widens(index) else 1
            blocks.append(self._block(group, self._shortcut_of.get(index), channels, stride))
            channels = blocks[-1].convs[-1].outputs
        if self._gates and sum(block.gate is not None for block in blocks) != len(self._gates):
            raise UnreadableError("an attention belongs to no block")
        large = stems[0].kernel == 7 or len(stem) == 3
        head, concat = head_layers(self._head, channels)
        return Plan(
            stem=tuple(stems), stem_stride=2 if large else 1, maxpool=large, blocks=tuple(blocks), head=head,
            concat_pool=concat,
        )  # fmt: skip

    def _stem_count(self) -> int:
        if self._known:
            return sum(conv.name.startswith("conv1") for conv in self._main)
        kernels = [conv.kernel for conv in self._main]
        count = kernels.index(1) if 1 in kernels else 1
        if count not in (1, 3):
            raise UnreadableError(f"it begins with {count} convolutions before its first block")
        return count

    def _grouped(self, rest: list[Layer]) -> list[list[Layer]]:
        """Bottlenecks of three convolutions, basic blocks of two, or single convolutions where two do not divide."""
        kernels = [conv.kernel for conv in rest]
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
                and group[-1].width == outputs
                and (index == 0 or groups[index - 1][-1].width == inputs)
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


def _is_square_one(conv: Layer) -> bool:
    return conv.weight.shape[2:] == (1, 1)


def _common(one: str, other: str) -> int:
    """Length of the common beginning of two names."""
    return next(
        (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
