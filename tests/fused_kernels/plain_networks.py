"""Residual networks in plain PyTorch, built and named as torchvision's and timm's, to fuse and to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """torchvision's."""

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = norm(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = norm(planes)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """torchvision's, the stride on the 3x3; ``stride_first`` puts it on the first 1x1 as the paper does."""

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        norm: Norm = nn.BatchNorm2d,
        stride_first: bool = False,
    ) -> None:
        super().__init__()
        first, second = (stride, 1) if stride_first else (1, stride)
        self.conv1 = nn.Conv2d(inplanes, planes, 1, first, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, second, 1, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = norm(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class TimmBottleneck(Bottleneck):
    """timm's: an activation module after each norm, and hooks for drop, anti-aliasing and attention."""

    def __init__(self, *args: Any, attention: nn.Module | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.relu
        self.act1, self.act2, self.act3 = nn.ReLU(inplace=True), nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.drop_block, self.aa = nn.Identity(), nn.Identity()
        self.se = attention
        self.drop_path: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        out = self.aa(self.act2(self.drop_block(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))))
        out = self.bn3(self.conv3(out))
        if self.se is not None:
            out = self.se(out)
        return self.act3(out + (x if self.downsample is None else self.downsample(x)))


class PadShortcut(nn.Module):
    """Option A."""

    def __init__(self, stride: int, pad_channels: tuple[int, int]) -> None:
        super().__init__()
        self.stride, self.pad_channels = stride, pad_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.pad_channels))


def projection(inplanes: int, planes: int, stride: int, norm: Norm = nn.BatchNorm2d) -> nn.Sequential:
    """Option B."""
    return nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), norm(planes))


class ResNet(nn.Module):
    """torchvision's: a 7x7 stem with max pool, or the CIFAR networks' 3x3 stem."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        classes: int = 10,
        imagenet: bool = True,
        pad: bool = False,
    ) -> None:
        super().__init__()
        kernel, stride = (7, 2) if imagenet else (3, 1)
        self.conv1 = nn.Conv2d(3, widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if imagenet else None
        channels = widths[0]
        self.names = [f"layer{index + 1}" for index in range(len(layers))]
        for name, count, width in zip(self.names, layers, widths, strict=True):
            blocks = []
            for index in range(count):
                stride = 2 if index == 0 and name != "layer1" else 1
                out = width * block.expansion
                shortcut: nn.Module | None = None
                if pad and out != channels:
                    shortcut = PadShortcut(stride, ((out - channels) // 2, (out - channels + 1) // 2))
                elif stride > 1 or out != channels:
                    shortcut = projection(channels, out, stride)
                blocks.append(block(channels, width, stride, shortcut))
                channels = out
            self.add_module(name, nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return self.fc(x.mean((2, 3)))
