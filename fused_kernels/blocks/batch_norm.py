"""Batch norm between the kernels: partial sums in, vectors or coefficients out, in one process or across several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from fused_kernels.operands.partials import Partials
from fused_kernels.ops import statistics
from fused_kernels.ops.splits import SplitSum
from fused_kernels.ops.statistics import NormGradient
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


@dataclass(frozen=True)
class Norm:
    """One batch norm to compute; ``partials`` of kinds (mean, M2) are only needed for batch statistics."""

    layer: Layer
    partials: Partials | None
    affine: Affine


def normalize(norms: Sequence[Norm]) -> list[Normalized]:
    """The vectors of one batch norm, or of two whose results are added, with as few launches as possible."""
    batch = [_to_finalize(norm) for norm in norms if norm.layer.batch_statistics]
    finalized = iter(statistics.finalize_all(batch) if batch else [])
    counts = iter(layer.partials.counts for layer in batch)
    made = []
    for norm in norms:
        affine = norm.affine
        if norm.layer.batch_statistics:
            (vectors, running), rows = next(finalized), next(counts)
            total = None if rows is None else rows.sum().reshape(1).to(vectors.dtype)
            made.append(Normalized(vectors, running, total))
        else:
            assert affine.running is not None  # the module that wrote the specification made sure
            vectors = statistics.frozen(affine.running, affine.gamma, affine.beta, norm.layer.eps)
            made.append(Normalized(vectors, None, None))
    return made


def _to_finalize(norm: Norm) -> statistics.Finalized:
    layer, partials, affine = norm.layer, norm.partials, norm.affine
    assert partials is not None
    if layer.group is not None:
        partials = _gathered(partials, layer.group)
    running = affine.running if layer.updates else None
    return statistics.Finalized(partials, affine.gamma, affine.beta, layer.eps, running, affine.momentum)


def norm_gradients(
    partials: Partials,
    norms: Sequence[tuple[Layer, Tensor, Tensor | None]],
    pending: Sequence[SplitSum] = (),
) -> list[NormGradient]:
    """The gradients of one batch norm, or of two with the same g, from this process's sums; see ``ops.statistics``.

    ``norms`` are layer, vectors and ``total`` of each. dgamma and dbeta stay local, as torch's SyncBatchNorm leaves
    them: the trainer averages gradients.
    """
    local = statistics.norm_gradients(
        partials, [(vectors, not layer.batch_statistics) for layer, vectors, _ in norms], pending
    )
    if all(total is None for _, _, total in norms):
        return local
    sums = statistics.sums(partials)
    return [
        own
        if total is None
        else own._replace(coefficients=_shared(layer, vectors, total, sums[[0, 1 + index]]))
        for index, ((layer, vectors, total), own) in enumerate(zip(norms, local, strict=True))
    ]


def _shared(layer: Layer, vectors: Tensor, total: Tensor, sums: Tensor) -> Tensor:
    """Coefficients of a batch norm over all processes, from this one's ``sums`` [2, C]."""
    assert layer.group is not None
    dist.all_reduce(sums, group=_group(layer.group))
    means = Partials((sums / total)[:, None], 1, 1)
    return statistics.norm_gradients(means, [(vectors, False)])[0].coefficients


def _gathered(partials: Partials, group_name: str) -> Partials:
    """One row of mean, M2 and count for each process of the group, exchanged in fp64."""
    group = _group(group_name)
    local = statistics.merge(partials)
    count = torch.full((1, partials.channels), partials.count, dtype=local.dtype, device=local.device)
    own = torch.cat([local, count])
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, own, group=group)
    stacked = torch.stack(gathered, dim=1)  # [3, processes, C]
    return Partials(stacked[:2].contiguous(), 0, partials.count, stacked[2, :, 0].contiguous())


def _group(name: str) -> dist.ProcessGroup:
    # operators take strings, not groups; torch's own functional collectives look them up in the same way
    return cast(dist.ProcessGroup, distributed_c10d._resolve_process_group(name))  # type: ignore
