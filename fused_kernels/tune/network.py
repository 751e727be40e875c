"""The problems of a network, collected while it runs on tensors without values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from fused_kernels import modules
from fused_kernels.blocks.inference import without_chains
from fused_kernels.choice import choosing, default_tile
from fused_kernels.errors import Unsupported
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

IMAGENET: dict[str, Callable[[], nn.Module]] = {
    "resnet18": modules.resnet18,
    "resnet34": modules.resnet34,
    "resnet50": modules.resnet50,
    "resnet101": modules.resnet101,
    "resnet152": modules.resnet152,
}
CIFAR_PREFIX = "cifar-resnet"
IMAGENET_SIDE, CIFAR_SIDE = 224, 32

_INT8_EPILOGUES = {
    "bias": "requantize",
    "bias_relu": "requantize_relu",
    "bias_residual_relu": "requantize_residual_relu",
}


def problems_of(
    name: str, *, batch: int, dtype: torch.dtype, training: bool, side: int | None = None
) -> Counter[Problem]:
    """Count every problem of one training step or one inference pass.

    Args:
        name: ``resnet18`` … ``resnet152``, or ``cifar-resnet20``, ``cifar-resnet32``, ….
        batch: number of images.
        dtype: of the activations; int8 for inference only.
        training: a training step; otherwise an inference pass, with and without the chain kernel.
        side: height and width of the images; by default 224 or 32.

    Raises:
        Unsupported: the network is unknown, or training in int8 is asked for.
    """
    int8 = dtype == torch.int8
    if int8 and training:
        raise Unsupported("int8 is for inference: leave --training out")
    network = _network(name)
    side = side or (CIFAR_SIDE if name.startswith(CIFAR_PREFIX) else IMAGENET_SIDE)
    floating = torch.float16 if int8 else dtype
    network.to(floating)
    images = torch.empty((batch, 3, side, side), dtype=floating, device="meta")
    found: Counter[Problem] = Counter()

    def listen(problem: Problem) -> Tile:
        found[_in_int8(problem) if int8 else problem] += 1
        return default_tile(problem)

    with choosing(listen):
        _run(network, images, training=training)
    return found


def _run(network: nn.Module, images: Tensor, *, training: bool) -> None:
    network.train(training)
    if training:
        network(images).sum().backward()
        return
    with torch.no_grad():
        network(images)
        with without_chains():
            network(images)


def _network(name: str) -> nn.Module:
    with torch.device("meta"):
        if name in IMAGENET:
            return IMAGENET[name]()
        depth = name.removeprefix(CIFAR_PREFIX)
        if name.startswith(CIFAR_PREFIX) and depth.isdecimal():
            return modules.cifar_resnet(int(depth))
    names = ", ".join([*IMAGENET, f"{CIFAR_PREFIX}20", "…"])
    raise Unsupported(f"unknown network {name!r}: choose one of {names}")


def _in_int8(problem: Problem) -> Problem:
    """The int8 form of an fp16 inference problem; a stem keeps its epilogue's name."""
    return replace(
        problem, dtype=torch.int8, epilogue=_INT8_EPILOGUES.get(problem.epilogue, problem.epilogue)
    )
