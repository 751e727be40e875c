"""ResNet with torchvision's parameter names, written so that an exporter can walk it.

    x -> conv1 -> bn1 -> relu -> [maxpool] -> blocks of layer1 … layerS -> global average pool -> fc
    block:  y = relu(bnK(convK(… relu(bn1(conv1(x))))) + downsample(x))

With pre-activation the first block takes what is activated already, and a norm and a ReLU follow the last:

    block:  y = convK(relu(bnK(… conv1(relu(bn1(x)))))) + downsample(x)

The state_dict has torchvision's names (``conv1``, ``bn1``, ``layer3.22.conv2``, ``layer2.0.downsample.0``, ``fc``). The
CIFAR networks in ``cifar.py`` are the same class with another stem and other widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rescompile.models.form import PLAIN_WIDTH, BlockForm

ConvBN = tuple[nn.Conv2d, nn.BatchNorm2d]
Layer = tuple[int, int, int, int]
"""A convolution: output channels, kernel size, stride, groups."""


@dataclass(frozen=True)
class Stem:
    """The layers in front of the first block."""

    kernel: int
    stride: int
    maxpool: bool


IMAGENET_STEM = Stem(kernel=7, stride=2, maxpool=True)


class Projection(nn.Sequential):
    """Shortcut option B: a 1x1 convolution and batch norm, called ``0`` and ``1`` in the state_dict."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
        )

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        return cast(nn.Conv2d, self[0])

    @property
    def bn(self) -> nn.BatchNorm2d:
        """The batch norm after it."""
        return cast(nn.BatchNorm2d, self[1])


class BareProjection(nn.Sequential):
    """The projection of a pre-activation block, ``0``, whose input is normalized already."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False))

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        return cast(nn.Conv2d, self[0])


class OptionA(nn.Module):
    """Shortcut option A: every ``stride``-th pixel, then zero channels before and after. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        extra = out_channels - in_channels
        self.stride = stride
        self.pad_channels = (extra // 2, extra - extra // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, before + C + after, ceil(H / stride), ceil(W / stride)]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.pad_channels))


Shortcut = Projection | BareProjection | OptionA


def _shortcut(form: BlockForm, in_channels: int, out_channels: int, stride: int) -> Shortcut | None:
    same = stride == 1 and in_channels == out_channels
    if not form.residual or (same and form.shortcut != "C"):
        return None
    if form.shortcut == "A":
        return OptionA(in_channels, out_channels, stride)
    return (BareProjection if form.pre_activation else Projection)(in_channels, out_channels, stride)


class Block(nn.Module):
    """A chain of convolutions with batch norm, and a shortcut around it."""

    expansion: ClassVar[int]
    """Output channels over ``width``."""
    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    conv2: nn.Conv2d
    bn2: nn.BatchNorm2d
    downsample: Shortcut | None
    """The shortcut; None where the block's input is added unchanged, or nothing is added."""

    def __init__(
        self, in_channels: int, width: int, form: BlockForm, *, stride: int, activated: bool = False
    ) -> None:
        """``activated`` says that the input of a pre-activation block went through a ReLU already."""
        super().__init__()
        self.form, self.activated = form, activated and form.pre_activation
        channels = in_channels
        for number, (outputs, kernel, step, groups) in enumerate(self.layers(width, stride, form), 1):
            conv = nn.Conv2d(
                channels, outputs, kernel, stride=step, padding=kernel // 2, groups=groups, bias=False
            )
            if form.pre_activation:
                if number > 1 or not self.activated:
                    self.add_module(f"bn{number}", nn.BatchNorm2d(channels))
                self.add_module(f"conv{number}", conv)
            else:
                self.add_module(f"conv{number}", conv)
                self.add_module(f"bn{number}", nn.BatchNorm2d(outputs))
            channels = outputs
        self.count = number
        self.downsample = _shortcut(form, in_channels, channels, stride)

    @staticmethod
    def layers(width: int, stride: int, form: BlockForm) -> list[Layer]:
        """The chain as data."""
        raise NotImplementedError

    def convs(self) -> list[ConvBN]:
        """The chain of a post-activation block in order.

        A ReLU follows each pair but the last, which the residual add and a ReLU follow.
        """
        return [cast(ConvBN, pair) for pair in self.pairs()]

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
        """Each convolution and its batch norm, which stands before it in a pre-activation block."""
        return [
            (
                cast(nn.Conv2d, self.get_submodule(f"conv{number}")),
                cast("nn.BatchNorm2d | None", getattr(self, f"bn{number}", None)),
            )
            for number in range(1, self.count + 1)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, width * expansion, H / stride, W / stride]."""
        if self.form.pre_activation:
            return self._pre_activated(x)
        *inner, (last_conv, last_bn) = self.convs()
        y = x
        for conv, bn in inner:
            y = F.relu(bn(conv(y)))
        y = last_bn(last_conv(y))
        if self.form.residual:
            y = y + (x if self.downsample is None else self.downsample(x))
        return F.relu(y)

    def _pre_activated(self, x: Tensor) -> Tensor:
        first = y = x if self.activated else F.relu(self.bn1(x))
        for index, (conv, bn) in enumerate(self.pairs()):
            y = conv(y if index == 0 or bn is None else F.relu(bn(y)))
        if not isinstance(self.downsample, BareProjection):
            first = x  # what only moves values keeps the clean path
        return y + (first if self.downsample is None else self.downsample(first))


class BasicBlock(Block):
    """Two 3x3 convolutions, the first with the stride."""

    expansion = 1

    @staticmethod
    def layers(width: int, stride: int, form: BlockForm) -> list[Layer]:
        """See ``Block.layers``; ``form`` does not matter here."""
        return [(width, 3, stride, 1), (width, 3, 1, 1)]


class Bottleneck(Block):
    """A 1x1 convolution to ``width`` channels, a 3x3 one, and a 1x1 one to four times the width."""

    expansion = 4
    conv3: nn.Conv2d
    bn3: nn.BatchNorm2d

    @staticmethod
    def layers(width: int, stride: int, form: BlockForm) -> list[Layer]:
        """See ``Block.layers``."""
        inner = width * form.width_per_group // PLAIN_WIDTH * form.groups
        first, second = (1, stride) if form.stride_on == "3x3" else (stride, 1)
        return [
            (inner, 1, first, 1),
            (inner, 3, second, form.groups),
            (width * Bottleneck.expansion, 1, 1, 1),
        ]


class ResNet(nn.Module):
    """Stem, stages ``layer1`` … ``layerS``, global average pool and classifier; by default as for ImageNet."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        stage_sizes: tuple[int, ...],
        form: BlockForm = BlockForm(),  # noqa: B008 - it is frozen
        *,
        classes: int = 1000,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        stem: Stem = IMAGENET_STEM,
        stem_channels: int | None = None,
    ) -> None:
        super().__init__()
        channels = stem_channels or widths[0]
        self.conv1 = nn.Conv2d(
            3, channels, stem.kernel, stride=stem.stride, padding=stem.kernel // 2, bias=False
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if stem.maxpool else None
        self.stage_names = tuple(f"layer{stage}" for stage in range(1, len(stage_sizes) + 1))
        for name, width, size in zip(self.stage_names, widths, stage_sizes, strict=True):
            blocks = []
            for index in range(size):
                stride = 2 if index == 0 and name != "layer1" else 1
                first = index == 0 and name == "layer1"
                blocks.append(block(channels, width, form, stride=stride, activated=first))
                channels = width * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.norm = nn.BatchNorm2d(channels) if form.pre_activation else None
        self.fc = nn.Linear(channels, classes)
        if not self.conv1.weight.is_meta:
            # on the meta device there are no values, but torch would take milliseconds per layer
            self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[tuple[str, nn.Sequential]]:
        """The stages in order with their state_dict names; each is a sequence of ``Block``."""
        return [(name, cast(nn.Sequential, self.get_submodule(name))) for name in self.stage_names]

    def blocks(self) -> list[tuple[str, Block]]:
        """All blocks in order with their state_dict names, such as ``layer3.22``."""
        return [
            (f"{stage}.{index}", cast(Block, block))
            for stage, blocks in self.stages()
            for index, block in enumerate(blocks)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Normalized float32 images [N, 3, H, W] to logits [N, classes]."""
        x = F.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for _, stage in self.stages():
            x = stage(x)
        if self.norm is not None:
            x = F.relu(self.norm(x))
        return cast(Tensor, self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))
