"""The distinct convolutions of a bottleneck ResNet, read off the plain network itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.gpu.plain_resnet import PlainResNet, Scale
from fused_kernels.geometry import Conv

Role = Literal["conv1", "conv2", "conv3", "projection"]


@dataclass(frozen=True)
class Layer:
    """One convolution of a block and where it stands; [c, h, h] to [k, p, p]."""

    name: str
    """Of the first of its kind, such as ``layer1.0.conv2``."""
    role: Role
    c: int
    k: int
    h: int
    conv: Conv
    first: bool
    """In its stage's first block, whose input is another operator's output."""
    stride: int
    """Of its block's shortcut."""
    after_projection: bool = False
    """conv1 of a second block: the block before has a projection, whose sums its backward collects too."""
    count: int = 1
    """How many of the network's convolutions are like this one."""

    @property
    def p(self) -> int:
        """Height and width of its output."""
        return self.conv.output_size(self.h, self.h)[0]

    def flops(self, batch: int) -> float:
        """Multiplications and additions of its fprop, and likewise of its dgrad and wgrad."""
        return 2.0 * batch * self.p**2 * self.k * self.c * self.conv.r * self.conv.s


def distinct_layers(scale: Scale) -> list[Layer]:
    """Every convolution of the blocks, those that are alike counted as one, in the network's order."""
    found: dict[Layer, Layer] = {}
    for layer in _all_layers(scale):
        kind = replace(layer, name="", count=0)
        known = found.get(kind)
        found[kind] = layer if known is None else replace(known, count=known.count + 1)
    return list(found.values())


def _all_layers(scale: Scale) -> list[Layer]:
    network = PlainResNet(scale).to("meta")
    found: list[Layer] = []

    def note(name: str, module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        stage, index, part = name.split(".")[:3]
        role: Role = "projection" if part == "downsample" else part  # type: ignore[assignment]
        shortcut = network.get_submodule(f"{stage}.{index}").conv2.stride[0]  # type: ignore[union-attr, index]
        padding = module.padding[0]
        assert isinstance(padding, int)
        conv = Conv(*module.kernel_size, module.stride[0], padding)  # type: ignore[arg-type]
        in_first = index == "0" and role in {"conv1", "projection"}
        follows = index == "1" and role == "conv1"
        found.append(
            Layer(
                name, role, module.in_channels, module.out_channels, inputs[0].shape[2], conv, in_first,
                shortcut if role == "conv1" else 1, follows,
            )
        )  # fmt: skip

    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and "." in name:
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: note(name, module, inputs)  # type: ignore[misc]
            )
    network(torch.empty(1, 3, scale.image, scale.image, device="meta"))
    return found
