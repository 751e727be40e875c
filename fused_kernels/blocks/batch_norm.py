"""Batch norm around the fused kernels: partial sums in, vectors or coefficients out, alone or across processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from fused_kernels.operands.partials import Partials
from fused_kernels.ops import statistics
from fused_kernels.specification import Layer


@dataclass(frozen=True)
class Affine:
    """A batch norm's own tensors, each [C]."""

    gamma: Tensor
    beta: Tensor
    running: tuple[Tensor, Tensor] | None
    """Running mean and variance."""
    momentum: float
    """Weight of the new value in the running statistics."""


@dataclass(frozen=True)
class Normalized:
    """What a forward pass keeps of one batch norm."""

    vectors: Tensor
    """fp32 [4, C]: mean, invstd, scale, shift."""
    running: Tensor | None
    """The running statistics' next values [2, C], where the layer updates them."""
    total: Tensor | None
    """fp32 [1]: rows on all processes, where several share the statistics."""


def normalize(layer: Layer, partials: Partials | None, affine: Affine) -> Normalized:
    """The vectors of one batch norm; ``partials`` of kinds (mean, M2) are needed for batch statistics alone."""
    if not layer.batch_statistics:
        assert affine.running is not None  # the module that wrote the specification saw to it
        return Normalized(statistics.frozen(affine.running, affine.gamma, affine.beta, layer.eps), None, None)
    assert partials is not None
    if layer.group is not None:
        partials = _gathered(partials, layer.group)
    running = affine.running if layer.updates else None
    vectors, new = statistics.finalize(
        partials, affine.gamma, affine.beta, layer.eps, running, affine.momentum
    )
    total = None if partials.counts is None else partials.counts.sum().reshape(1).to(vectors.dtype)
    return Normalized(vectors, new, total)


@dataclass(frozen=True)
class NormGradient:
    """Gradients of one batch norm."""

    coefficients: Tensor
    """fp32 [3, C] for ``passes.bn_backward``."""
    dgamma: Tensor
    dbeta: Tensor


def denormalize(
    layer: Layer, sum_g: Tensor, sum_gy: Tensor, vectors: Tensor, count: int, total: Tensor | None
) -> NormGradient:
    """From sum(g) and sum(g * (y - mean)), each [C] and of this process, to the gradients of one batch norm.

    dgamma and dbeta stay local, as torch's SyncBatchNorm leaves them: averaging gradients is the trainer's part.
    """
    # a copy: the sum is a row of a tensor that other gradients come from, and an operator's results may share no memory
    dgamma, dbeta = sum_gy * vectors[1], sum_g.clone()
    if layer.group is not None and total is not None:
        shared = torch.stack([sum_g, sum_gy])
        dist.all_reduce(shared, group=_group(layer.group))
        sum_g, sum_gy = shared / total
        count = 1
    frozen = not layer.batch_statistics
    return NormGradient(
        statistics.coefficients(sum_g, sum_gy, vectors, count, is_frozen=frozen), dgamma, dbeta
    )


def _gathered(partials: Partials, group_name: str) -> Partials:
    """One row of mean, M2 and count for each process of the group, exchanged in fp64 as they are merged in it."""
    group = _group(group_name)
    local = statistics.merge(partials)
    count = torch.full((1, partials.channels), partials.count, dtype=local.dtype, device=local.device)
    mine = torch.cat([local, count])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    stacked = torch.stack(everyone, dim=1)  # [3, processes, C]
    return Partials(stacked[:2].contiguous(), 0, partials.count, stacked[2, :, 0].contiguous())


def _group(name: str) -> dist.ProcessGroup:
    # operators take strings and no groups; torch's own functional collectives look them up in the same way
    return cast(dist.ProcessGroup, distributed_c10d._resolve_process_group(name))  # type: ignore
