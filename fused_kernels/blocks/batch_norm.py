"""Batch norm between the kernels: partial sums in, vectors or coefficients out, in one process or across several."""

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
    """The forward pass's results of one batch norm."""

    vectors: Tensor
    """fp32 [4, C]: mean, invstd, scale, shift."""
    running: Tensor | None
    """The running statistics' next values [2, C], where the layer updates them."""
    total: Tensor | None
    """fp32 [1]: rows on all processes, where several share the statistics."""


def normalize(layer: Layer, partials: Partials | None, affine: Affine) -> Normalized:
    """The vectors of one batch norm; ``partials`` of kinds (mean, M2) are only needed for batch statistics."""
    if not layer.batch_statistics:
        assert affine.running is not None  # the module that wrote the specification made sure
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


def norm_gradient(
    layer: Layer, y: Tensor, vectors: Tensor, total: Tensor | None, sum_g: Tensor, sum_gy: Tensor
) -> NormGradient:
    """The gradients of a batch norm on ``y``, from this process's sum(g) and sum(g * (y - mean)), each [C].

    dgamma and dbeta stay local, as torch's SyncBatchNorm leaves them: the trainer averages gradients.
    """
    count = y.numel() // y.shape[1]
    # a copy, because the sum is a row of a larger tensor and the results of an operator must not share memory
    dgamma, dbeta = sum_gy * vectors[1], sum_g.clone()
    if layer.group is not None and total is not None:
        shared = torch.stack([sum_g, sum_gy])
        dist.all_reduce(shared, group=_group(layer.group))
        sum_g, sum_gy = shared / total
        count = 1
    frozen = not layer.batch_statistics
    coefficients = statistics.coefficients(sum_g, sum_gy, vectors, count, is_frozen=frozen)
    return NormGradient(coefficients, dgamma, dbeta)


def _gathered(partials: Partials, group_name: str) -> Partials:
    """One row of mean, M2 and count for each process of the group, exchanged in fp64."""
    group = _group(group_name)
    local = statistics.merge(partials)
    count = torch.full((1, partials.channels), partials.count, dtype=local.dtype, device=local.device)
    mine = torch.cat([local, count])
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everyone, mine, group=group)
    stacked = torch.stack(everyone, dim=1)  # [3, processes, C]
    return Partials(stacked[:2].contiguous(), 0, partials.count, stacked[2, :, 0].contiguous())


def _group(name: str) -> dist.ProcessGroup:
    # operators take strings, not groups; torch's own functional collectives look them up in the same way
    return cast(dist.ProcessGroup, distributed_c10d._resolve_process_group(name))  # type: ignore
