"""Every network that rescompile knows, by name and depth. Needs no torch until ``create`` makes one.

family     names                         depth     block       stages  widths          shortcut
imagenet   resnet18 … resnet152          table     by depth    4       64-128-256-512  B
cifar      resnet{6n+2}-cifar            6n+2      basic       3 x n   16-32-64        A (or B)
cifar      resnet{9n+2}-cifar-bottleneck 9n+2      bottleneck  3 x n   16-32-64        B
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from rescompile.errors import UsageError, did_you_mean
from rescompile.models.specification import BlockKind, ModelSpec, ShortcutOption, StrideOn

if TYPE_CHECKING:
    from rescompile.models.resnet import ResNet


def _imagenet(depth: int, block: BlockKind, stages: tuple[int, ...]) -> ModelSpec:
    return ModelSpec(
        name=f"resnet{depth}", depth=depth, family="imagenet", block=block, stages=stages,
        shortcut="B", image_size=224,
    )  # fmt: skip


IMAGENET_SPECS: dict[int, ModelSpec] = {
    18: _imagenet(18, "basic", (2, 2, 2, 2)),
    34: _imagenet(34, "basic", (3, 4, 6, 3)),
    50: _imagenet(50, "bottleneck", (3, 4, 6, 3)),
    101: _imagenet(101, "bottleneck", (3, 4, 23, 3)),
    152: _imagenet(152, "bottleneck", (3, 8, 36, 3)),
}
"""The ImageNet networks by depth."""

KNOWN_NAMES: tuple[str, ...] = (
    *(spec.name for spec in IMAGENET_SPECS.values()),
    *(f"resnet{depth}-cifar" for depth in (20, 32, 44, 56, 110, 1202)),
    *(f"resnet{depth}-cifar-bottleneck" for depth in (20, 56, 110, 164)),
)
"""Names for help texts; every other CIFAR depth 6n+2 (bottleneck: 9n+2) is known too."""
_KNOWN = f"Known: {', '.join(KNOWN_NAMES)}, and any other CIFAR depth 6n+2 (bottleneck: 9n+2)"

_LAYERS_PER_UNIT: dict[BlockKind, int] = {"basic": 6, "bottleneck": 9}
_NAME = re.compile(r"resnet([1-9]\d{0,4})(-cifar)?(-bottleneck)?")


def cifar_spec(depth: int, block: BlockKind) -> ModelSpec:
    """The CIFAR network of ``depth`` layers.

    Raises:
        UsageError: ``depth`` is not 6n+2 (basic) or 9n+2 (bottleneck).
    """
    suffix = "-cifar" if block == "basic" else "-cifar-bottleneck"
    unit = _LAYERS_PER_UNIT[block]
    n, rest = divmod(depth - 2, unit)
    if n < 1 or rest:
        below = max(n, 1) * unit + 2
        raise UsageError(
            f"resnet{depth}{suffix} does not exist: CIFAR networks of {block} blocks have {unit}n+2 layers, "
            f"such as resnet{below}{suffix} or resnet{below + unit}{suffix}"
        )
    return ModelSpec(
        name=f"resnet{depth}{suffix}", depth=depth, family="cifar", block=block, stages=(n, n, n),
        shortcut="A" if block == "basic" else "B", image_size=32,
    )  # fmt: skip


def find(*, depth: int | None, name: str | None) -> ModelSpec:
    """The network called ``name``, or the ImageNet network of ``depth`` layers.

    Raises:
        UsageError: neither is given, they contradict each other, or no network has that name or depth.
    """
    if name is None and depth is None:
        raise UsageError("no network was named: pass --depth 101, --model resnet56-cifar or --weights FILE")
    if name is None:
        assert depth is not None
        return _of_depth(depth)
    spec = _named(name)
    if depth is not None and depth != spec.depth:
        raise UsageError(
            f"--model {name} has {spec.depth} layers, but --depth {depth} was asked: pass one of the two"
        )
    return spec


def with_options(
    spec: ModelSpec, *, shortcut: ShortcutOption | None = None, stride_on: StrideOn | None = None
) -> ModelSpec:
    """``spec`` with the options that are not None; a checkpoint with another shortcut is then refused.

    Raises:
        UsageError: the network has no such option.
    """
    if shortcut not in {None, "A", "B"}:
        raise UsageError(
            f"'{shortcut}' is not a shortcut option: choose A (zero padding) or B (1x1 convolution)"
        )
    if stride_on not in {None, "3x3", "1x1"}:
        raise UsageError(f"a stride cannot be on '{stride_on}': the choices are 3x3 (v1.5) and 1x1 (v1)")
    if shortcut == "A" and (spec.family, spec.block) != ("cifar", "basic"):
        raise UsageError(
            f"{spec.name} has no shortcut option A: only the CIFAR networks of basic blocks have it"
        )
    if stride_on == "1x1" and spec.block == "basic":
        raise UsageError(
            f"{spec.name} has no 1x1 convolution for the stride: its blocks are basic, leave it on 3x3"
        )
    return replace(
        spec,
        shortcut=shortcut or spec.shortcut,
        stride_on=stride_on or spec.stride_on,
        shortcut_asked=shortcut is not None or spec.shortcut_asked,
    )


def create(spec: ModelSpec, classes: int) -> ResNet:
    """The network in eval mode, with He-initialized weights from torch's global generator.

    Raises:
        UsageError: ``classes`` is below 1.
    """
    if classes < 1:
        raise UsageError(f"a network needs at least one class, not {classes}")
    from rescompile.models.cifar import cifar_resnet
    from rescompile.models.resnet import BasicBlock, Bottleneck, ResNet

    block = BasicBlock if spec.block == "basic" else Bottleneck
    if spec.family == "imagenet":
        model = ResNet(block, spec.stages, classes=classes, stride_on=spec.stride_on)
    else:
        model = cifar_resnet(
            block, spec.stages[0], classes=classes, shortcut=spec.shortcut, stride_on=spec.stride_on
        )
    return model.eval()


def _named(name: str) -> ModelSpec:
    match = _NAME.fullmatch(name)
    if match is None or (match[3] and not match[2]):
        raise UsageError(
            f"there is no model '{name}'.{did_you_mean(name.lower(), list(KNOWN_NAMES))} {_KNOWN}"
        )
    if match[2]:
        return cifar_spec(int(match[1]), "bottleneck" if match[3] else "basic")
    return _of_depth(int(match[1]))


def _of_depth(depth: int) -> ModelSpec:
    if depth in IMAGENET_SPECS:
        return IMAGENET_SPECS[depth]
    on_cifar = [
        f"--model resnet{depth}-cifar{'' if block == 'basic' else '-bottleneck'}"
        for block, unit in _LAYERS_PER_UNIT.items()
        if depth > 2 and (depth - 2) % unit == 0
    ]
    if on_cifar:
        raise UsageError(f"a ResNet of depth {depth} exists only for CIFAR: use {' or '.join(on_cifar)}")
    guess = did_you_mean(str(depth), [str(known) for known in IMAGENET_SPECS])
    raise UsageError(f"there is no ResNet of depth {depth}.{guess} {_KNOWN}")
