"""The network that a state_dict belongs to, found from its names and shapes alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from rescompile.errors import UsageError
from rescompile.models.form import ShortcutOption
from rescompile.models.registry import IMAGENET_SPECS, PRE_ACTIVATION_SPECS, cifar_spec, wide_spec
from rescompile.models.specification import BlockKind, ModelSpec
from rescompile.wording import listing

_CONV = re.compile(r"layer(\d{1,3})\.(\d{1,5})\.conv(\d)\.weight")
_ATTENTION = re.compile(r"layer\d+\.\d+\.(se|se_module|attn|attention|eca|cbam|ca|sa|fc\d)\.")


@dataclass(frozen=True)
class Anatomy:
    """The structure of a ResNet as its names and shapes show it."""

    stem: tuple[int, int]
    """Channels and kernel size of ``conv1``."""
    block: BlockKind
    stages: tuple[int, ...]
    """Blocks per stage."""
    projections: int
    """Shortcuts with parameters."""
    width: int
    """Channels of the first convolution behind the stem."""
    pre_activation: bool
    """Whether a norm stands between the last block and the classifier."""

    def __str__(self) -> str:
        channels, kernel = self.stem
        sizes = "-".join(map(str, self.stages))
        return f"a ResNet of {sizes} {self.block} blocks with a {kernel}x{kernel} stem of {channels} channels"


def anatomy(state_dict: Mapping[str, Tensor]) -> Anatomy | None:
    """The structure of a state_dict with torchvision's names; None where it is not a ResNet."""
    blocks: dict[int, set[int]] = defaultdict(set)
    last_conv = 0
    for match in filter(None, map(_CONV.fullmatch, state_dict)):
        blocks[int(match[1])].add(int(match[2]))
        last_conv = max(last_conv, int(match[3]))
    stem = state_dict.get("conv1.weight")
    first = state_dict.get("layer1.0.conv1.weight")
    stages_in_order = sorted(blocks) == list(range(1, len(blocks) + 1))
    if stem is None or stem.ndim != 4 or last_conv not in {2, 3} or not stages_in_order:
        return None
    return Anatomy(
        stem=(stem.shape[0], stem.shape[2]),
        block="basic" if last_conv == 2 else "bottleneck",
        stages=tuple(len(blocks[stage]) for stage in sorted(blocks)),
        projections=sum(name.endswith(".downsample.0.weight") for name in state_dict),
        width=0 if first is None or first.ndim != 4 else first.shape[0],
        pre_activation="norm.weight" in state_dict,
    )


def variant(state_dict: Mapping[str, Tensor]) -> str | None:
    """The kind of ResNet that rescompile does not support, such as "a wide ResNet"; None for plain networks."""
    if any(re.match(r"conv1\.\d+\.", name) for name in state_dict):
        return "a ResNet-D stem (or -C, -S, -T: several convolutions in conv1)"
    averaged = (state_dict.get(name) for name in state_dict if name.endswith("downsample.1.weight"))
    if any(tensor is not None and tensor.ndim == 4 for tensor in averaged):
        return "a ResNet-D shortcut (average pooling before the projection)"
    if any(_ATTENTION.match(name) for name in state_dict):
        return "an SE network (squeeze-and-excitation or another attention in the blocks)"
    return _widened(state_dict)


def _widened(state_dict: Mapping[str, Tensor]) -> str | None:
    stem, conv1, conv2 = (
        state_dict.get(name) for name in ("conv1.weight", "layer1.0.conv1.weight", "layer1.0.conv2.weight")
    )
    if stem is None or conv1 is None or conv2 is None or {stem.ndim, conv1.ndim, conv2.ndim} != {4}:
        return None
    if conv2.shape[1] < conv1.shape[0]:
        return "a ResNeXt (grouped convolutions)"
    if conv1.shape[0] > stem.shape[0]:
        return "a wide ResNet"
    return None


def identify(state_dict: Mapping[str, Tensor]) -> ModelSpec | None:
    """The network, with its shortcut option, that a canonical state_dict belongs to; None where it is not known.

    Weights do not show the place of the stride (v1 or v1.5); the result has that of v1.5.
    """
    found = anatomy(state_dict)
    if found is None or (not found.pre_activation and variant(state_dict) is not None):
        return None
    spec = None
    if found.stem == (64, 7):
        spec = next((spec for spec in IMAGENET_SPECS.values() if _has_blocks(spec, found)), None)
        if found.pre_activation:
            spec = next((spec for spec in PRE_ACTIVATION_SPECS.values() if _has_blocks(spec, found)), None)
    elif found.stem == (16, 3) and len(found.stages) == 3 and len(set(found.stages)) == 1:
        spec = _cifar(found)
    return None if spec is None else replace(spec, shortcut=_shortcut(spec, found))


def _has_blocks(spec: ModelSpec, found: Anatomy) -> bool:
    return (spec.stages, spec.block) == (found.stages, found.block)


def _cifar(found: Anatomy) -> ModelSpec | None:
    n, widen = found.stages[0], found.width // found.stem[0]
    if found.pre_activation and found.block == "basic" and found.projections:
        return wide_spec(6 * n + 4, widen) if widen else None
    layers = 2 if found.block == "basic" else 3
    try:
        return cifar_spec(layers * sum(found.stages) + 2, found.block, pre_activation=found.pre_activation)
    except UsageError:
        return None


def _shortcut(spec: ModelSpec, found: Anatomy) -> ShortcutOption:
    """The shortcut option: A without projections, B with one where the shape changes, C with one in every block."""
    if not found.projections:
        return "A"
    stages = len(found.stages)
    same = spec.block == "basic" and spec.widen == 1
    changing = stages - 1 if same else stages
    return "C" if found.projections == sum(found.stages) > changing else "B"


def describe(state_dict: Mapping[str, Tensor]) -> str:
    """The network in a state_dict, as a noun phrase for error messages."""
    spec = identify(state_dict)
    if spec is not None:
        has_option = (spec.family, spec.block) == ("cifar", "basic") or spec.shortcut != "B"
        return f"a {spec.name}" + f" with shortcut option {spec.shortcut}" * has_option
    kind = variant(state_dict) or anatomy(state_dict)
    return str(kind) if kind else f"a network under names that are not known here ({listing(state_dict)})"


OTHER_WAYS = (
    "export the network to ONNX in the program that made it and pass that file with --onnx, or pass the live module to "
    "rescompile.build"
)
"""Ways to pass a network that its weights alone do not describe."""
