"""Every network that rescompile knows, by name and depth. Needs no torch until ``create`` makes one.

family    names                              depth  block       stages  widths          shortcut
imagenet  resnet18 … resnet152               table  by depth    4       64-128-256-512  B (C; A with basic blocks)
imagenet  resnet18-preact … resnet200-preact table  by depth    4       64-128-256-512  B, norms before convolutions
imagenet  plain18, plain34                   table  basic       4       64-128-256-512  none
imagenet  resnext50_32x4d, wide_resnet50_2 … table  bottleneck  4       64-128-256-512  B, torchvision's
cifar     resnet{d}-cifar, plain{d}-cifar    6n+2   basic       3 x n   16-32-64        A (B, C); none
cifar     resnet{d}-cifar-bottleneck         9n+2   bottleneck  3 x n   16-32-64        B (C)
cifar     resnet{d}-cifar[-bottleneck]-preact       as above, norms before convolutions
cifar     wrn-{d}-{k}                        6n+4   basic       3 x n   16k-32k-64k     B, norms before convolutions
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from rescompile.errors import UsageError, did_you_mean
from rescompile.models.form import ShortcutOption, StrideOn
from rescompile.models.specification import BlockKind, ModelSpec

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

PRE_ACTIVATION_SPECS: dict[int, ModelSpec] = {
    depth: replace(spec, name=f"resnet{depth}-preact", pre_activation=True)
    for depth, spec in (IMAGENET_SPECS | {200: _imagenet(200, "bottleneck", (3, 24, 36, 3))}).items()
}
"""The same with norms before convolutions, by depth."""

_PLAIN_SPECS = {
    depth: replace(IMAGENET_SPECS[depth], name=f"plain{depth}", residual=False, shortcut="A")
    for depth in (18, 34)
}
_RELATIVES = {
    name: replace(IMAGENET_SPECS[depth], name=name, groups=groups, width_per_group=width)
    for name, depth, groups, width in (
        ("resnext50_32x4d", 50, 32, 4),
        ("resnext101_32x8d", 101, 32, 8),
        ("resnext101_64x4d", 101, 64, 4),
        ("wide_resnet50_2", 50, 1, 128),
        ("wide_resnet101_2", 101, 1, 128),
    )
}
_PAPERS_BOTTLENECKS = {
    f"resnet{depth}-cifar-preact": f"resnet{depth}-cifar-bottleneck-preact" for depth in (164, 1001)
}
"""Pre-activation networks whose blocks are bottlenecks in the paper, by the name without that word."""

KNOWN_NAMES: tuple[str, ...] = (
    *(spec.name for specs in (IMAGENET_SPECS, PRE_ACTIVATION_SPECS, _PLAIN_SPECS) for spec in specs.values()),
    *_RELATIVES,
    *(f"resnet{depth}-cifar" for depth in (20, 32, 44, 56, 110, 1202)),
    *(f"plain{depth}-cifar" for depth in (20, 32, 44, 56, 110)),
    *(f"resnet{depth}-cifar-bottleneck" for depth in (20, 56, 110, 164)),
    "resnet110-cifar-preact",
    *_PAPERS_BOTTLENECKS,
    *(f"wrn-{sizes}" for sizes in ("16-1", "16-4", "40-4", "16-8", "28-10")),
)
"""Names for help texts; every other depth of the CIFAR families is known too."""
_KNOWN = (
    f"Known: {', '.join(KNOWN_NAMES)}, and any other CIFAR depth 6n+2 (bottleneck: 9n+2; wide: wrn-DEPTH-WIDTH with "
    "depth 6n+4)"
)

_LAYERS_PER_UNIT: dict[BlockKind, int] = {"basic": 6, "bottleneck": 9}
_NAME = re.compile(r"(resnet|plain)([1-9]\d{0,4})(-cifar)?(-bottleneck)?(-preact)?")
_WIDE = re.compile(r"wrn-([1-9]\d{0,4})-([1-9]\d{0,2})")


def cifar_spec(
    depth: int, block: BlockKind, *, residual: bool = True, pre_activation: bool = False
) -> ModelSpec:
    """The CIFAR network of ``depth`` layers.

    Raises:
        UsageError: ``depth`` is not 6n+2 (basic) or 9n+2 (bottleneck).
    """
    stem = "resnet" if residual else "plain"
    suffix = "-cifar" + "-bottleneck" * (block == "bottleneck") + "-preact" * pre_activation
    unit = _LAYERS_PER_UNIT[block]
    n, rest = divmod(depth - 2, unit)
    if n < 1 or rest:
        below = max(n, 1) * unit + 2
        raise UsageError(
            f"{stem}{depth}{suffix} does not exist: CIFAR networks of {block} blocks have {unit}n+2 layers, "
            f"such as {stem}{below}{suffix} or {stem}{below + unit}{suffix}"
        )
    return ModelSpec(
        name=f"{stem}{depth}{suffix}", depth=depth, family="cifar", block=block, stages=(n, n, n),
        shortcut="A" if block == "basic" else "B", image_size=32, residual=residual, pre_activation=pre_activation,
    )  # fmt: skip


def wide_spec(depth: int, widen: int) -> ModelSpec:
    """The wide ResNet for CIFAR of ``depth`` layers and ``widen`` times the channels.

    Raises:
        UsageError: ``depth`` is not 6n+4.
    """
    n, rest = divmod(depth - 4, 6)
    if n < 1 or rest:
        below = max(n, 1) * 6 + 4
        raise UsageError(
            f"wrn-{depth}-{widen} does not exist: wide ResNets have 6n+4 layers, such as wrn-{below}-{widen} or "
            f"wrn-{below + 6}-{widen}"
        )
    return ModelSpec(
        name=f"wrn-{depth}-{widen}", depth=depth, family="cifar", block="basic", stages=(n, n, n), shortcut="B",
        image_size=32, pre_activation=True, widen=widen,
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
    if shortcut not in {None, "A", "B", "C"}:
        raise UsageError(
            f"'{shortcut}' is not a shortcut option: choose A (zero padding), B (1x1 convolution where a block changes "
            "shape) or C (1x1 convolution in every block)"
        )
    if stride_on not in {None, "3x3", "1x1"}:
        raise UsageError(f"a stride cannot be on '{stride_on}': the choices are 3x3 (v1.5) and 1x1 (v1)")
    if shortcut is not None and not spec.residual:
        raise UsageError(f"{spec.name} has no shortcuts: leave the option out, or name a resnet")
    if shortcut == "A" and spec.block != "basic":
        raise UsageError(f"{spec.name} has no shortcut option A: only networks of basic blocks have it")
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
        model = ResNet(block, spec.stages, spec, classes=classes)
    else:
        model = cifar_resnet(block, spec.stages[0], spec, classes=classes, widen=spec.widen)
    return model.eval()


def untrained(
    name: str, classes: int, *, shortcut: ShortcutOption | None = None, stride_on: StrideOn | None = None
) -> ResNet:
    """The network called ``name`` as training begins: in train mode, initialized as in the papers.

    Convolutions are drawn from torch's global generator with a variance of 2 / (kernel size * output channels), and
    batch norms begin as the identity.

    Raises:
        UsageError: no network has that name, it has no such option, or ``classes`` is below 1.
    """
    spec = with_options(find(depth=None, name=name), shortcut=shortcut, stride_on=stride_on)
    return create(spec, classes).train()


def _named(name: str) -> ModelSpec:
    if name in _RELATIVES:
        return _RELATIVES[name]
    wide = _WIDE.fullmatch(name)
    if wide is not None:
        return wide_spec(int(wide[1]), int(wide[2]))
    match = _NAME.fullmatch(_PAPERS_BOTTLENECKS.get(name, name))
    if match is not None:
        plain, depth = match[1] == "plain", int(match[2])
        cifar, bottleneck, pre_activation = (part is not None for part in match.groups()[2:])
        if cifar and not (plain and (bottleneck or pre_activation)):
            block: BlockKind = "bottleneck" if bottleneck else "basic"
            return cifar_spec(depth, block, residual=not plain, pre_activation=pre_activation)
        if plain and not (cifar or bottleneck or pre_activation):
            return _of_depth(depth, _PLAIN_SPECS, "plain network", "plain")
        if pre_activation and not (plain or bottleneck):
            return _of_depth(depth, PRE_ACTIVATION_SPECS, "pre-activation ResNet", "resnet", "-preact")
        if not (plain or bottleneck or pre_activation):
            return _of_depth(depth)
    raise UsageError(f"there is no model '{name}'.{did_you_mean(name.lower(), list(KNOWN_NAMES))} {_KNOWN}")


def _of_depth(
    depth: int,
    known: dict[int, ModelSpec] = IMAGENET_SPECS,
    words: str = "ResNet",
    stem: str = "resnet",
    suffix: str = "",
) -> ModelSpec:
    if depth in known:
        return known[depth]
    on_cifar = [
        f"--model {stem}{depth}-cifar{'' if block == 'basic' else '-bottleneck'}{suffix}"
        for block, unit in _LAYERS_PER_UNIT.items()
        if depth > 2 and (depth - 2) % unit == 0 and (block == "basic" or stem == "resnet")
    ]
    if on_cifar:
        raise UsageError(f"a {words} of depth {depth} exists only for CIFAR: use {' or '.join(on_cifar)}")
    guess = did_you_mean(str(depth), [str(one) for one in known])
    raise UsageError(f"there is no {words} of depth {depth}.{guess} {_KNOWN}")
