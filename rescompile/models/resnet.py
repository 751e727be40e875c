"""ResNet with torchvision's parameter names, written so that an exporter can walk it.

    x -> conv1 -> bn1 -> relu -> [maxpool] -> blocks of layer1 … layerS -> global average pool -> fc
    block:  y = relu(bnK(convK(… relu(bn1(conv1(x))))) + downsample(x))

The state_dict has torchvision's names (``conv1``, ``bn1``, ``layer3.22.conv2``, ``layer2.0.downsample.0``, ``fc``). The
CIFAR networks in ``cifar.py`` are the same class with another stem and other widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:  # so that this module needs torch alone
    from rescompile.models.specification import ShortcutOption, StrideOn

ConvBN = tuple[nn.Conv2d, nn.BatchNorm2d]


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


def _shortcut(
    option: ShortcutOption, in_channels: int, out_channels: int, stride: int
) -> Projection | OptionA | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return (Projection if option == "B" else OptionA)(in_channels, out_channels, stride)


class Block(nn.Module):
    """A chain of convolutions with batch norm, and a shortcut around it."""

    expansion: ClassVar[int]
    """Output channels over ``width``."""
    downsample: Projection | OptionA | None
    """The shortcut; None where the block's input is added unchanged."""

    def convs(self) -> list[ConvBN]:
        """The chain in order. A ReLU follows each pair but the last, which the residual add and a ReLU follow."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, width * expansion, H / stride, W / stride]."""
        *inner, (last_conv, last_bn) = self.convs()
        y = x
        for conv, bn in inner:
            y = F.relu(bn(conv(y)))
        y = last_bn(last_conv(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class BasicBlock(Block):
    """Two 3x3 convolutions, the first with the stride; ``stride_on`` has no effect."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        shortcut: ShortcutOption,
        stride_on: StrideOn = "3x3",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(shortcut, in_channels, width, stride)

    def convs(self) -> list[ConvBN]:
        """See ``Block.convs``."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2)]


class Bottleneck(Block):
    """A 1x1 convolution to ``width`` channels, a 3x3 one, and a 1x1 one to four times the width."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        shortcut: ShortcutOption,
        stride_on: StrideOn = "3x3",
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        first, second = (1, stride) if stride_on == "3x3" else (stride, 1)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=second, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _shortcut(shortcut, in_channels, out_channels, stride)

    def convs(self) -> list[ConvBN]:
        """See ``Block.convs``."""
        return [(self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)]


class ResNet(nn.Module):
    """Stem, stages ``layer1`` … ``layerS``, global average pool and classifier; by default as for ImageNet."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        stage_sizes: tuple[int, ...],
        *,
        classes: int = 1000,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        stem: Stem = IMAGENET_STEM,
        shortcut: ShortcutOption = "B",
        stride_on: StrideOn = "3x3",
    ) -> None:
        super().__init__()
        channels = widths[0]
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
                blocks.append(block(channels, width, stride=stride, shortcut=shortcut, stride_on=stride_on))
                channels = width * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
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
        return cast(Tensor, self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))
