"""The problems of a network, collected while it runs on tensors without values."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch
from torch import nn

from fused_kernels import modules
from fused_kernels.blocks.inference import without_chains
from fused_kernels.choice import choosing, default_tile
from fused_kernels.errors import Unsupported
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

IMAGENET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
CIFAR_PREFIX = "cifar-resnet"

_INT8_EPILOGUES = {
    "bias": "requantize",
    "bias_relu": "requantize_relu",
    "bias_residual_relu": "requantize_residual_relu",
}
"""Epilogues of fp16 inference and their int8 forms; a stem's has the same name."""


def problems_of(name: str, *, batch: int, dtype: torch.dtype, training: bool) -> Counter[Problem]:
    """Count every problem of one training step or one inference pass.

    Args:
        name: ``resnet18`` … ``resnet152`` on 224x224 images, or ``cifar-resnet20``, ``cifar-resnet32``, … on 32x32.
        batch: number of images.
        dtype: of the activations; int8 for inference only.
        training: a training step; otherwise an inference pass, with and without the chain kernel.

    Raises:
        Unsupported: the network is unknown, or training in int8 is asked for.
    """
    int8 = dtype == torch.int8
    if int8 and training:
        raise Unsupported("int8 is for inference: leave --training out")
    floating = torch.float16 if int8 else dtype
    network = _network(name).to(floating).train(training)
    side = 32 if name.startswith(CIFAR_PREFIX) else 224
    images = torch.empty((batch, 3, side, side), dtype=floating, device="meta")
    found: Counter[Problem] = Counter()

    def listen(problem: Problem) -> Tile:
        epilogue = _INT8_EPILOGUES.get(problem.epilogue, problem.epilogue)
        found[replace(problem, dtype=dtype, epilogue=epilogue) if int8 else problem] += 1
        return default_tile(problem)

    with choosing(listen):
        if training:
            network(images).sum().backward()
        else:
            with torch.no_grad():
                network(images)
                with without_chains():
                    network(images)
    return found


def _network(name: str) -> nn.Module:
    with torch.device("meta"):
        if name in IMAGENET:
            network: nn.Module = getattr(modules, name)()
            return network
        depth = name.removeprefix(CIFAR_PREFIX)
        if name.startswith(CIFAR_PREFIX) and depth.isdecimal():
            return modules.cifar_resnet(int(depth))
    names = ", ".join([*IMAGENET, f"{CIFAR_PREFIX}20", "…"])
    raise Unsupported(f"unknown network {name!r}: choose one of {names}")
