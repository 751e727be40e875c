"""PyTorch on the CPU: eager, channels_last, and compiled by Inductor."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.artifact_cache import ArtifactCache
from benchmarks.networks import DEEP, Network
from benchmarks.peers.base import FP32_ALLOWED, Call, Missing


class Eager:
    """PyTorch as most people run it."""

    name, ours, allowed = "PyTorch eager", False, FP32_ALLOWED

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Load the weights."""
        return _call(model_of(net, threads), channels_last=False)


class ChannelsLast:
    """In the memory format that oneDNN likes best."""

    name, ours, allowed = "PyTorch channels_last", False, FP32_ALLOWED

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Load the weights and change their format."""
        import torch

        return _call(model_of(net, threads).to(memory_format=torch.channels_last), channels_last=True)


class Compiled:
    """torch.compile with Inductor, weights frozen, which folds the batch norms."""

    name, ours, allowed = "torch.compile", False, FP32_ALLOWED

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Compile at the first call, for any batch."""
        if shutil.which("g++") is None and shutil.which("clang++") is None:
            raise Missing("Inductor needs a C++ compiler, and there is none")
        if net.name in DEEP:
            raise Missing("Inductor takes minutes to compile this depth; resnet18 and resnet50 have the row")
        import torch
        import torch._inductor.config as inductor

        inductor.freezing = True
        model = model_of(net, threads).to(memory_format=torch.channels_last)
        return _call(torch.compile(model), channels_last=True)


def model_of(net: Network, threads: int) -> Any:
    """The network in PyTorch, with the weights that our engines were built from."""
    import torch

    from rescompile.models import registry
    from rescompile.models.random_weights import random_model
    from rescompile.sources import checkpoint

    torch.set_num_threads(threads)
    spec = registry.find(depth=None, name=net.name)
    if net.weights == "random":
        return random_model(spec, spec.default_classes, 0)[0].eval()
    return checkpoint.build_model(spec, checkpoint.load_checkpoint(Path(net.weights)))


def _call(model: Any, *, channels_last: bool) -> Call:
    import torch

    def call(images: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            fed = torch.from_numpy(images)
            if channels_last:
                fed = fed.contiguous(memory_format=torch.channels_last)
            logits: NDArray[np.float32] = model(fed).numpy()
            return logits

    return call
