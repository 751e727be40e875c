"""One process of a training, or several that torchrun started; and batch norms whose statistics they share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rescompile.errors import UsageError
from rescompile.training.order import Share


@dataclass(frozen=True)
class Process:
    """This process's part and device."""

    share: Share
    device: torch.device

    @property
    def writes(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.share.rank == 0

    @property
    def alone(self) -> bool:
        """Whether this is the only process."""
        return self.share.world == 1

    def summed(self, values: Tensor) -> Tensor:
        """``values`` summed over all processes."""
        if not self.alone:
            dist.all_reduce(values)
        return values

    def follow_first(self, network: nn.Module) -> None:
        """Take the running statistics of the first process."""
        if not self.alone:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def joined(batch_size: int) -> Iterator[Process]:
    """This process, joined with the others that torchrun started.

    Raises:
        UsageError: the batch cannot be shared equally.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if batch_size % world:
        raise UsageError(
            f"a batch of {batch_size} cannot be shared by {world} processes: pass a --batch-size that can"
        )
    if cuda:
        torch.cuda.set_device(device)
    if world == 1:
        yield Process(Share(), device)
        return
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield Process(Share(rank, world), device)
    finally:
        dist.destroy_process_group()


def synchronized(network: nn.Module, device: torch.device) -> nn.Module:
    """``network`` with batch norms that share their statistics: torch's own, which need a GPU, or ours on a CPU."""
    if device.type == "cuda":
        return cast(nn.Module, nn.SyncBatchNorm.convert_sync_batchnorm(network))  # type: ignore[no-untyped-call]
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SharedNorm
    return network


class SharedNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, of equal size."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] of this process."""
        if not self.training:
            return super().forward(x)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _summed(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        var = _summed(centred.square().sum((0, 2, 3))) / count
        self._follow(mean.detach(), var.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(var + self.eps)
        return centred * scale[:, None, None] + self.bias[:, None, None]

    def _follow(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        weight = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, weight)
        self.running_var.lerp_(var, weight)


def _summed(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
