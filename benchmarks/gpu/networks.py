"""A bottleneck ResNet in plain PyTorch (``rescompile.models.resnet``) and the fused one with the same parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fused_kernels.modules import FusedBottleneck, FusedResNet
from rescompile.models.resnet import Bottleneck, Projection, ResNet

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


def without_values(scale: Scale) -> ResNet:
    """A network of shapes alone, on the meta device; it costs nothing to make."""
    with torch.device("meta"):
        return _resnet(scale)


def _resnet(scale: Scale) -> ResNet:
    return ResNet(Bottleneck, scale.blocks, classes=scale.classes, widths=scale.widths)


def plain(scale: Scale, device: torch.device | str) -> ResNet:
    """A seeded network in channels_last, its batch norms with affines of their own."""
    torch.manual_seed(0)
    network = _resnet(scale)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return in_channels_last(network.to(device))


def fused(scale: Scale, source: ResNet) -> FusedResNet:
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


def settle(network: ResNet, x: Tensor) -> ResNet:
    """Set the running statistics to those of one batch, so that ``eval`` answers with numbers of a sensible size."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        network.train()(x)
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


def folded(network: ResNet) -> ResNet:
    """Fold every batch norm into its convolution, in place: what a careful user compiles for inference."""
    parents: Sequence[nn.Module] = [network, *(block for _, block in network.blocks())]
    for parent in parents:
        for index in range(1, 4):
            if hasattr(parent, f"bn{index}"):
                conv, norm = parent.get_submodule(f"conv{index}"), parent.get_submodule(f"bn{index}")
                setattr(parent, f"conv{index}", _fold(conv, norm))
                setattr(parent, f"bn{index}", nn.Identity())
        if isinstance(parent, Bottleneck) and isinstance(parent.downsample, Projection):
            shortcut = parent.downsample
            shortcut[0], shortcut[1] = _fold(shortcut.conv, shortcut.bn), nn.Identity()
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
