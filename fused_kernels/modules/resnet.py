"""Whole ResNets from fused parts, with torchvision's names: ``conv1``, ``bn1``, ``layer1.0.conv1`` …, ``fc``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn

from fused_kernels.blocks.torch_operators import pool_classifier
from fused_kernels.errors import Unsupported
from fused_kernels.modules.adoption import difference, parts_of
from fused_kernels.modules.block import FusedBasicBlock, FusedBlock, FusedBottleneck
from fused_kernels.modules.block_forward import run
from fused_kernels.modules.folding import forget
from fused_kernels.modules.shortcut import PadShortcut
from fused_kernels.modules.stage import FusedStage
from fused_kernels.modules.stem import run_stem

if TYPE_CHECKING:
    from typing_extensions import Self

IMAGENET_WIDTHS = (64, 128, 256, 512)
CIFAR_WIDTHS = (16, 32, 64)


class FusedResNet(nn.Module):
    """Stem, stages ``layer1`` … ``layerS``, global average pool and classifier.

    All stages are computed by one operator, which saves a pass over the widest activation at the end of each. Set
    ``linked`` to False for an operator a stage: where hooks on stages must be called, or where many processes train
    and gradients should be sent while others are still computed.
    """

    linked: bool = True

    def __init__(
        self,
        block: type[FusedBasicBlock] | type[FusedBottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        *,
        widths: Sequence[int] = IMAGENET_WIDTHS,
        stem_kernel: Literal[7, 3] = 7,
        shortcut: Literal["projection", "pad"] = "projection",
    ) -> None:
        super().__init__()
        imagenet = stem_kernel == 7
        stride = 2 if imagenet else 1
        self.conv1 = nn.Conv2d(3, widths[0], stem_kernel, stride=stride, padding=stem_kernel // 2, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(widths[0])
        self.maxpool: nn.Module | None = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else None
        channels = widths[0]
        self.stage_names = [f"layer{index}" for index in range(1, len(layers) + 1)]
        for name, width, count in zip(self.stage_names, widths, layers, strict=True):
            blocks = []
            for index in range(count):
                stride = 2 if index == 0 and name != "layer1" else 1
                out = width * block.expansion
                blocks.append(block(channels, width, stride, _downsample(channels, out, stride, shortcut)))
                channels = out
            self.add_module(name, FusedStage(*blocks))
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def adopt(cls, model: nn.Module) -> FusedResNet:
        """The fused form of a whole ResNet with torchvision's names, around the same parameters and buffers.

        ``fuse`` replaces only blocks, because the model's own forward pass calls the stem and head in pieces. This
        takes them too.

        Args:
            model: torchvision's, timm's or our ResNet; its blocks may be fused already.

        Raises:
            Unsupported: a FusedResNet does not compute some part of the model; the message names it.
        """
        parts = parts_of(model)
        network = cls.__new__(cls)
        nn.Module.__init__(network)
        network.conv1, network.bn1, network.maxpool = parts.conv1, parts.bn1, parts.maxpool
        network.stage_names = list(parts.stages)
        for name, stage in parts.stages.items():
            network.add_module(name, stage)
        network.fc = parts.fc
        network.training = model.training
        if reason := difference(model, network, (2, parts.conv1.in_channels, 32, 32)):
            raise Unsupported(
                f"the model is not a plain ResNet: {reason}; fuse(model) takes the blocks that it can"
            )
        return network

    def stages(self) -> list[FusedStage]:
        """The stages in order."""
        return [cast(FusedStage, self.get_submodule(name)) for name in self.stage_names]

    def train(self, mode: bool = True) -> Self:
        """Set the mode. The next inference folds the weights again, even if nothing seems changed."""
        forget(self.conv1)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images [N, 3, H, W] to logits [N, classes]."""
        x = run_stem(self.conv1, self.bn1, x, pool=self.maxpool is not None)
        if self.linked:
            x = run([cast(FusedBlock, block) for stage in self.stages() for block in stage], x)
        else:
            for stage in self.stages():
                x = stage(x)
        return classify(self.fc, x)


def classify(fc: nn.Linear, x: Tensor) -> Tensor:
    """Global average pool and classifier; two kernels where no gradient is wanted."""
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or fc.weight.requires_grad)
    if wants_gradient or fc.bias is None:
        return cast(Tensor, fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)))
    bias = fc.bias.to(torch.promote_types(x.dtype, torch.float32))
    return cast(Tensor, pool_classifier(x, fc.weight.to(x.dtype), bias)).to(x.dtype)


def _downsample(channels: int, out: int, stride: int, shortcut: str) -> nn.Module | None:
    if stride == 1 and channels == out:
        return None
    if shortcut == "pad":
        extra = out - channels
        return PadShortcut(stride, (extra // 2, extra - extra // 2))
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))


resnet18 = partial(FusedResNet, FusedBasicBlock, (2, 2, 2, 2))
resnet34 = partial(FusedResNet, FusedBasicBlock, (3, 4, 6, 3))
resnet50 = partial(FusedResNet, FusedBottleneck, (3, 4, 6, 3))
resnet101 = partial(FusedResNet, FusedBottleneck, (3, 4, 23, 3))
resnet152 = partial(FusedResNet, FusedBottleneck, (3, 8, 36, 3))


def cifar_resnet(
    depth: int, num_classes: int = 10, *, shortcut: Literal["projection", "pad"] = "pad"
) -> FusedResNet:
    """The CIFAR networks of 6n+2 layers: 20, 32, 44, 56, 110, 1202.

    Raises:
        Unsupported: ``depth`` is not 6n+2.
    """
    if depth < 8 or (depth - 2) % 6:
        raise Unsupported(f"a CIFAR ResNet has 6n+2 layers (20, 32, 44, 56, 110, …), not {depth}")
    per_stage = ((depth - 2) // 6,) * 3
    return FusedResNet(
        FusedBasicBlock, per_stage, num_classes, widths=CIFAR_WIDTHS, stem_kernel=3, shortcut=shortcut
    )
