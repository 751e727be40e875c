"""The distinct convolutions of a bottleneck ResNet, read off the plain network itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.gpu.networks import Scale, without_values
from fused_kernels.operands.geometry import Conv
from rescompile.models.resnet import Bottleneck

Role = Literal["conv1", "conv2", "conv3", "projection"]
MAIN_PATH: tuple[Role, ...] = ("conv1", "conv2", "conv3")


@dataclass(frozen=True)
class Layer:
    """One convolution of a block and where it stands; [c, h, h] to [k, p, p]."""

    name: str
    """Name of the first such convolution, such as ``layer1.0.conv2``."""
    role: Role
    c: int
    k: int
    h: int
    conv: Conv
    stride: int = 1
    """Stride of its block's shortcut; set for conv1 only."""
    first: bool = False
    """Whether this is conv1 of the network's first block."""
    after_projection: bool = False
    """conv1, where the block before has a projection, whose sums its backward collects too."""
    count: int = 1
    """Number of the network's convolutions that are like this one."""

    @property
    def p(self) -> int:
        """Height and width of its output."""
        return self.conv.output_size(self.h, self.h)[0]

    def flops(self, batch: int) -> float:
        """Multiplications and additions of its fprop, and likewise of its dgrad and wgrad."""
        return 2.0 * batch * self.p**2 * self.k * self.c * self.conv.r * self.conv.s


@cache
def distinct_layers(scale: Scale) -> tuple[Layer, ...]:
    """Every convolution of the blocks, those that are alike counted as one, in the network's order."""
    found: dict[Layer, Layer] = {}
    for layer in _all_layers(scale):
        kind = replace(layer, name="", count=0)
        known = found.get(kind)
        found[kind] = layer if known is None else replace(known, count=known.count + 1)
    return tuple(found.values())


def _all_layers(scale: Scale) -> list[Layer]:
    network = without_values(scale).eval()
    found: list[Layer] = []

    def note(role: Role, before: Bottleneck | None, block: Bottleneck, name: str) -> Callable[..., None]:
        def hook(module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
            (r, s), padding = module.kernel_size, module.padding[0]
            assert isinstance(padding, int)
            layer = Layer(
                name, role, module.in_channels, module.out_channels, inputs[0].shape[2],
                Conv(r, s, module.stride[0], padding),
            )  # fmt: skip
            if role == "conv1":
                projected = before is not None and before.downsample is not None
                stride = block.conv2.stride[0]
                layer = replace(layer, stride=stride, first=before is None, after_projection=projected)
            found.append(layer)

        return hook

    before: Bottleneck | None = None
    for name, block in network.named_modules():
        if isinstance(block, Bottleneck):
            for part in MAIN_PATH:
                module = block.get_submodule(part)
                module.register_forward_pre_hook(note(part, before, block, f"{name}.{part}"))
            if block.downsample is not None:
                hook = note("projection", before, block, f"{name}.downsample.0")
                block.downsample.get_submodule("0").register_forward_pre_hook(hook)
            before = block
    network(torch.empty(1, 3, scale.image, scale.image, device="meta"))
    return found
