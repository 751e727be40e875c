"""References of ``ops.statistics``."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_kernels.operands.partials import Partials
from fused_kernels.references.arithmetic import wide


def finalize(
    partials: Partials,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    running: tuple[Tensor, Tensor] | None,
    momentum: float,
) -> tuple[Tensor, Tensor | None]:
    mean, m2 = merge(partials)
    count = _sizes(partials).sum()
    vectors = _affine(mean, m2 / count, gamma, beta, eps).to(wide(gamma).dtype)
    if running is None:
        return vectors, None
    unbiased = m2 / (count - 1).clamp(min=1)
    new = torch.stack(
        [running[0].double().lerp(mean, momentum), running[1].double().lerp(unbiased, momentum)]
    )
    return vectors, new.to(running[0].dtype)


def merge(partials: Partials) -> Tensor:
    mean, m2 = partials.rows.double()
    sizes = _sizes(partials)[:, None]
    total = (sizes * mean).sum(0) / sizes.sum()
    within = m2.sum(0) + (sizes * (mean - total).square()).sum(0)
    return torch.stack([total, within])


def frozen(running: tuple[Tensor, Tensor], gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    mean, variance = (value.double() for value in running)
    return _affine(mean, variance, gamma, beta, eps).to(wide(running[0]).dtype)


def sums(partials: Partials) -> Tensor:
    return partials.rows.double().sum(1).to(partials.rows.dtype)


def norm_gradient(
    partials: Partials, kind: int, vectors: Tensor, *, is_frozen: bool
) -> tuple[Tensor, Tensor, Tensor]:
    sum_g, sum_gy = sums(partials)[[0, kind]]
    _, invstd, scale, _ = vectors.double()
    b = torch.zeros_like(scale) if is_frozen else -scale * invstd.square() * sum_gy.double() / partials.count
    c = torch.zeros_like(scale) if is_frozen else -scale * sum_g.double() / partials.count
    # copies, because the results of an operator must not share memory
    return torch.stack([scale, b, c]).to(vectors.dtype), sum_gy * vectors[1], sum_g.clone()


def _affine(mean: Tensor, variance: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    invstd = 1 / torch.sqrt(variance + eps)
    scale = gamma.double() * invstd
    return torch.stack([mean, invstd, scale, beta.double() - mean * scale])


def _sizes(partials: Partials) -> Tensor:
    """Rows that each tile stands for, fp64 [tiles]."""
    if partials.counts is not None:
        return partials.counts.double()
    starts = torch.arange(partials.tiles, device=partials.rows.device) * partials.per_tile
    return (partials.count - starts).clamp(max=partials.per_tile).double()
