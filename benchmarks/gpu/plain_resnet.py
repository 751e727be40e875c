"""A bottleneck ResNet in plain PyTorch with torchvision's structure and names, to hold the fused network against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fused_kernels.modules import FusedBottleneck, FusedResNet

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Scale:
    """The sizes of one bottleneck ResNet."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    classes: int
    image: int
    """Height and width of its images."""


FULL = Scale((3, 4, 6, 3), (64, 128, 256, 512), 1000, 224)
"""ResNet-50."""
TINY = Scale((2, 1), (16, 32), 8, 16)
"""The same structure, small enough for Triton's interpreter."""


class Bottleneck(nn.Module):
    """1x1 down, 3x3 with the stride, 1x1 up to four times the width."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, K, P, Q]."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return cast(Tensor, self.relu(y))


class PlainResNet(nn.Module):
    """Stem, stages ``layer1`` …, global average pool and ``fc``."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        channels = scale.widths[0]
        self.conv1 = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages: list[str] = []
        for index, (width, count) in enumerate(zip(scale.widths, scale.blocks, strict=True)):
            strides = [1 if index == 0 else 2] + [1] * (count - 1)
            blocks = []
            for stride in strides:
                blocks.append(Bottleneck(channels, width, stride))
                channels = 4 * width
            self.stages.append(f"layer{index + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, scale.classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, 3, H, W] to logits [N, classes]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return cast(Tensor, self.fc(torch.flatten(self.avgpool(x), 1)))


def without_values(scale: Scale) -> PlainResNet:
    """A network of shapes alone, on the meta device; it costs nothing to make."""
    with torch.device("meta"):
        return PlainResNet(scale)


def plain(scale: Scale, device: torch.device | str) -> PlainResNet:
    """A seeded network in channels_last, its batch norms with affines of their own."""
    torch.manual_seed(0)
    network = PlainResNet(scale)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return in_channels_last(network.to(device))


def fused(scale: Scale, source: PlainResNet) -> FusedResNet:
    """The fused network with the parameters of ``source``, on its device and in its dtype."""
    with torch.device("meta"):  # what is loaded next needs no random numbers first
        network = FusedResNet(FusedBottleneck, scale.blocks, scale.classes, widths=scale.widths)
    parameter = source.fc.weight
    if not parameter.is_meta:
        network.to_empty(device=parameter.device)
    in_channels_last(network.to(parameter.dtype))
    network.load_state_dict(source.state_dict())
    return network.train(source.training)


def in_channels_last(network: Network) -> Network:
    """``network``, its weights KRSC in memory."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def images(
    scale: Scale, batch: int, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Seeded random images [batch, 3, H, W] in channels_last."""
    torch.manual_seed(1)
    x = torch.randn(batch, 3, scale.image, scale.image, device=device, dtype=torch.float32)
    return x.to(dtype, memory_format=torch.channels_last)


def labels(scale: Scale, batch: int, device: torch.device | str) -> Tensor:
    """Seeded random classes [batch]."""
    torch.manual_seed(2)
    return torch.randint(scale.classes, (batch,), device=device)


def settle(network: PlainResNet, x: Tensor) -> PlainResNet:
    """Set the running statistics to those of one batch, so that ``eval`` answers with numbers of a sensible size."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def folded(network: PlainResNet) -> PlainResNet:
    """Fold every batch norm into its convolution, in place: what a careful user compiles for inference."""
    parents: Sequence[nn.Module] = [network, *(m for m in network.modules() if isinstance(m, Bottleneck))]
    for parent in parents:
        for index in range(1, 4):
            if hasattr(parent, f"bn{index}"):
                conv, norm = parent.get_submodule(f"conv{index}"), parent.get_submodule(f"bn{index}")
                setattr(parent, f"conv{index}", _fold(conv, norm))
                setattr(parent, f"bn{index}", nn.Identity())
        if isinstance(parent, Bottleneck) and parent.downsample is not None:
            conv, norm = parent.downsample
            parent.downsample = nn.Sequential(_fold(conv, norm), nn.Identity())
    return network


def _fold(conv: nn.Module, norm: nn.Module) -> nn.Module:
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return fuse_conv_bn_eval(conv, norm)


def flops(scale: Scale, batch: int) -> float:
    """Multiplications and additions of one forward pass of convolutions and classifier."""
    total = 0.0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = cast(Tensor, module.weight)
        total += 2.0 * output.numel() * weight[0].numel()

    network = without_values(scale)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    network(torch.empty(batch, 3, scale.image, scale.image, device="meta"))
    return total
