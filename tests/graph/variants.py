"""Narrow networks of many families as torch modules, exported as users export them."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import onnx
import torch
from torch import nn

from tests.graph.variant_blocks import (
    WIDTH,
    Aggregated,
    Blur,
    Bottleneck,
    Context,
    Dense,
    EfficientGate,
    Exchange,
    Frozen,
    Gate,
    Heads,
    Inverted,
    Joined,
    Mean,
    PaddedSkip,
    Partial,
    PreActivation,
    Pyramid,
    Residual,
    Scales,
    Segmenter,
    Selective,
    Shuffled,
    Stages,
    UNet,
    conv,
)


def pooled() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def network(*body: nn.Module, stem: nn.Module | None = None, head: nn.Module | None = None) -> nn.Module:
    """Stem, blocks, pool and classifier; the last block has twice the width."""
    first = stem or nn.Sequential(conv(3, WIDTH), nn.ReLU())
    return nn.Sequential(first, *body, pooled(), head or nn.Linear(2 * WIDTH, 10))


def deep_stem() -> nn.Module:
    return nn.Sequential(conv(3, 8, 3, 2), nn.ReLU(), conv(8, WIDTH), nn.ReLU(), nn.MaxPool2d(3, 2, 1))


def vgg() -> nn.Module:
    return nn.Sequential(
        conv(3, WIDTH), nn.ReLU(), nn.MaxPool2d(2), conv(WIDTH, 32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(32 * 16, 24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 10),
    )  # fmt: skip


def densenet() -> nn.Module:
    half = 2 * WIDTH - 8
    return nn.Sequential(
        conv(3, WIDTH), nn.ReLU(), Dense(WIDTH, 8, 3), nn.BatchNorm2d(40), nn.ReLU(),
        nn.Conv2d(40, half, 1, bias=False), nn.AvgPool2d(2), Dense(half, 8, 1), nn.BatchNorm2d(32), nn.ReLU(),
        pooled(), nn.Linear(32, 10),
    )  # fmt: skip


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
    "bottleneck": lambda: network(Bottleneck(WIDTH, 8, WIDTH), Bottleneck(WIDTH, 8, 32, 2)),
    "wide": lambda: network(Bottleneck(WIDTH, 32, WIDTH), Bottleneck(WIDTH, 32, 32, 2)),
    "resnext-bottleneck": lambda: network(Bottleneck(WIDTH, WIDTH, WIDTH, groups=4), Residual(WIDTH, 32, 2)),
    "eca": lambda: network(Residual(WIDTH, WIDTH, after=EfficientGate()), Residual(WIDTH, 32, 2)),
    "sk": lambda: network(Residual(WIDTH, WIDTH), Selective(WIDTH), Residual(WIDTH, 32, 2)),
    "backbone": lambda: Stages(Residual(WIDTH, WIDTH), Residual(WIDTH, 32, 2), Residual(32, 32)),
    "pyramid": Pyramid,
    "four-channels": lambda: network(Residual(WIDTH, 32, 2), stem=nn.Sequential(conv(4, WIDTH), nn.ReLU())),
    "non-square": lambda: network(Residual(WIDTH, WIDTH), Residual(WIDTH, 32, 2), stem=deep_stem()),
    "thin": lambda: network(Residual(WIDTH, 13), Residual(13, 32, 2)),
    "vgg": vgg,
    "densenet": densenet,
    "fcn": lambda: Segmenter(parallel=False),
    "deeplab": lambda: Segmenter(parallel=True),
    "unet": UNet,
    "mobilenet": lambda: network(
        Inverted(WIDTH, WIDTH), Inverted(WIDTH, 32, 2), stem=nn.Sequential(conv(3, WIDTH), nn.ReLU6())
    ),
    "mobilenet-v3": lambda: network(
        Inverted(WIDTH, WIDTH, act=nn.Hardswish, gated=True), Inverted(WIDTH, 32, 2, act=nn.Hardswish)
    ),
    "rexnet": lambda: network(Partial(WIDTH, 24), Partial(24, 32)),
    "hrnet": lambda: network(Residual(WIDTH, WIDTH), Exchange()),
    "res2net": lambda: network(Residual(WIDTH, 32, 2), Scales(32)),
    "dla": lambda: network(Aggregated()),
    "blur": lambda: network(Residual(WIDTH, WIDTH), Blur(WIDTH), Residual(WIDTH, 32)),
    "option-a": lambda: network(Residual(WIDTH, WIDTH), PaddedSkip()),
    "shuffle": lambda: network(Residual(WIDTH, 32, 2), Shuffled(32)),
    "frozen-norm": lambda: network(Frozen(WIDTH), Residual(WIDTH, 32, 2)),
    "leaky": lambda: network(
        Residual(WIDTH, 32, 2), nn.LeakyReLU(0.1), stem=nn.Sequential(conv(3, WIDTH), nn.LeakyReLU(0.1))
    ),
    "upsampled": lambda: network(
        Residual(WIDTH, 32, 2), nn.Upsample(scale_factor=2, mode="bilinear"), Residual(32, 32)
    ),
}


def shape(name: str) -> tuple[int, int, int]:
    """[C, H, W] of an image of a variant."""
    return {"grey": 1, "four-channels": 4}.get(name, 3), 16, 24 if name == "non-square" else 16


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
    return module, exported(module, (batch, *shape(name)))


def answers(module: nn.Module, images: Any) -> list[Any]:
    """Every output of ``module``."""
    with torch.inference_mode():
        found = module(torch.from_numpy(images))
    return [each.numpy() for each in (found if isinstance(found, tuple) else (found,))]
