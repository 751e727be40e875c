"""Narrow networks of many families as torch modules, exported as users export them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 16


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, **options: Any) -> nn.Sequential:
    """A convolution with batch norm."""
    padding = options.pop("padding", kernel // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False, **options)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.up(self.down(x.mean((2, 3), keepdim=True)).relu())
        return x * pooled.sigmoid()


class Residual(nn.Module):
    """A basic block whose parts can be exchanged."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int = 1,
        *,
        after: nn.Module | None = None,
        pooled: bool = False,
        identity: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        dilation = options.get("dilation", 1)
        self.first = conv(inputs, outputs, 3, stride, padding=dilation, **options)
        self.second = conv(outputs, outputs)
        self.after = after or nn.Identity()
        self.skip: nn.Module = nn.Identity() if identity else nn.Sequential()
        if stride > 1 or inputs != outputs:
            pool = [nn.AvgPool2d(2, stride)] if pooled else []
            self.skip = nn.Sequential(*pool, *conv(inputs, outputs, 1, 1 if pooled else stride))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.after(self.second(self.first(x).relu()))
        return (branch + self.skip(x)).relu()


class PreActivation(nn.Module):
    """A block with norm and activation in front of its convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.first = conv(inputs, outputs, 3, stride)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride > 1 or inputs != outputs
        self.skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        ready = self.norm(x).relu()
        branch = self.second(self.first(ready).relu())
        return branch + (x if self.skip is None else self.skip(ready))


class Joined(nn.Module):
    """Two paths whose channels are put side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(WIDTH, WIDTH), conv(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x).relu(), self.right(x).relu()], 1)


class Context(nn.Module):
    """What the whole image shows, beside every pixel, in the size of the input: as segmentation does it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left, self.pooled, self.joined = (
            conv(width, width),
            nn.Conv2d(width, width, 1),
            conv(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        whole = self.pooled(x.mean((2, 3), keepdim=True)).relu()
        spread = F.interpolate(whole, size=size, mode="bilinear", align_corners=False)
        made = self.joined(torch.cat([self.left(x).relu(), spread], 1)).relu()
        return F.interpolate(made, size=(16, 16), mode="bilinear", align_corners=False)


class Mean(nn.Module):
    """Networks that read one image."""

    def __init__(self, *members: nn.Module) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([member(x) for member in self.members]).mean(0)


class Heads(nn.Module):
    """Two answers of one network."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.one, self.two = body, nn.Linear(width, 10), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return self.one(features), self.two(features)


def pooled() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def network(*body: nn.Module, stem: nn.Module | None = None, head: nn.Module | None = None) -> nn.Module:
    """Stem, blocks, pool and classifier; the last block has twice the width."""
    first = stem or nn.Sequential(conv(3, WIDTH), nn.ReLU())
    return nn.Sequential(first, *body, pooled(), head or nn.Linear(2 * WIDTH, 10))


def deep_stem() -> nn.Module:
    return nn.Sequential(conv(3, 8, 3, 2), nn.ReLU(), conv(8, WIDTH), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "resnet-d": lambda: network(
        Residual(WIDTH, WIDTH), Residual(WIDTH, 32, 2, pooled=True), stem=deep_stem()
    ),
    "resnext": lambda: network(Residual(WIDTH, WIDTH, groups=4), Residual(WIDTH, 32, 2, groups=4)),
    "se": lambda: network(Residual(WIDTH, WIDTH, after=Gate(WIDTH)), Residual(WIDTH, 32, 2, after=Gate(32))),
    "pre-activation": lambda: network(
        PreActivation(WIDTH, WIDTH),
        PreActivation(WIDTH, 32, 2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        stem=conv(3, WIDTH),
    ),
    "plain": lambda: network(conv(WIDTH, WIDTH), nn.ReLU(), conv(WIDTH, 32, 3, 2), nn.ReLU()),
    "two-heads": lambda: Heads(
        nn.Sequential(
            conv(3, WIDTH), nn.ReLU(), Residual(WIDTH, WIDTH), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        WIDTH,
    ),
    "grey": lambda: network(Residual(WIDTH, 32, 2), stem=nn.Sequential(conv(1, WIDTH), nn.ReLU())),
    "identity": lambda: network(Residual(WIDTH, WIDTH, identity=True), Residual(WIDTH, 32, 2)),
    "dilated": lambda: network(Residual(WIDTH, WIDTH, dilation=2), Residual(WIDTH, 32)),
    "concat": lambda: network(Residual(WIDTH, WIDTH), Joined(), Residual(32, 32)),
    "group-norm": lambda: network(
        Residual(WIDTH, WIDTH, after=nn.GroupNorm(4, WIDTH)),
        Residual(WIDTH, 32, 2, after=nn.GroupNorm(4, 32)),
    ),
    "context": lambda: network(Residual(WIDTH, 32, 2), Context(32)),
    "ensemble": lambda: Mean(network(Residual(WIDTH, 32, 2)), network(Residual(WIDTH, 32, 2))),
    "mlp-head": lambda: network(
        Residual(WIDTH, 32, 2), head=nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))
    ),
    "upsampled": lambda: network(
        Residual(WIDTH, 32, 2), nn.Upsample(scale_factor=2, mode="bilinear"), Residual(32, 32)
    ),
}


def channels(name: str) -> int:
    return 1 if name == "grey" else 3


def fitted(module: nn.Module) -> nn.Module:
    """``module`` in eval mode, with norms as after some training."""
    for norm in module.eval().modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.2, 0.5)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
    return module


def exported(module: nn.Module, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The file that torch.onnx makes of ``module`` for an image of ``shape`` [N, C, H, W]."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(shape),), file, dynamo=False)
    module.eval()
    return onnx.load_from_string(file.getvalue())


@cache
def variant(name: str, *, batch: int = 1) -> tuple[nn.Module, onnx.ModelProto]:
    """A network of random weights, and its exported file."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = fitted(VARIANTS[name]())
    return module, exported(module, (batch, channels(name), 16, 16))


def answers(module: nn.Module, images: Any) -> list[Any]:
    """Every output of ``module``."""
    with torch.inference_mode():
        found = module(torch.from_numpy(images))
    return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]
