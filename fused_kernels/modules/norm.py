"""Torch's batch norms, read for the fused operators: modes, momentum, tracking, frozen and synchronized ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fused_kernels.errors import ShapeError
from fused_kernels.operands.geometry import Conv
from fused_kernels.specification import layer_text


@dataclass
class NormState:
    """The tensors and flags of the batch norms of a chain, in the order of its layers."""

    gammas: list[Tensor]
    betas: list[Tensor]
    running: list[Tensor]
    """Mean and variance of each norm that tracks them."""
    updated: list[Tensor]
    """Tensors of ``running`` that this pass changes."""
    momenta: list[float]
    counters: list[Tensor]
    """Counts of batches, of the norms that this pass changes."""


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a batch norm that the fused operators compute.

    Frozen norms of torchvision and timm are recognised by their buffers.
    """
    if type(module) in {nn.BatchNorm2d, nn.SyncBatchNorm}:
        return True
    return set(dict(module.named_buffers(recurse=False))) >= {"weight", "bias", "running_mean", "running_var"}


def uses_batch_statistics(norm: nn.Module) -> bool:
    """Whether a norm normalizes by its batch: in training, or if nothing is tracked. A frozen norm never does."""
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return False
    return norm.training or norm.running_mean is None


def text_of(norm: nn.Module, conv: Conv, *, materialize: bool = False) -> str:
    """``specification.layer_text`` of a convolution and this norm after it."""
    flags = ("b" if uses_batch_statistics(norm) else "") + ("m" if materialize else "")
    if norm.running_mean is not None:
        flags += "tu" if _updates(norm) else "t"
    eps = float(norm.eps)  # type: ignore[arg-type]  # a float in torch's and in frozen norms
    return layer_text(conv, eps, flags, _group_name(norm))


def _group_name(norm: nn.Module) -> str | None:
    """The process group that shares this norm's batch statistics, if any does."""
    if not (
        isinstance(norm, nn.SyncBatchNorm) and norm.training and dist.is_available() and dist.is_initialized()
    ):
        return None
    group = norm.process_group or dist.group.WORLD
    if dist.get_world_size(group) == 1:
        return None
    return None if group is None else str(group.group_name)


def state_of(norms: Sequence[nn.Module]) -> NormState:
    """Tensors for one pass; nothing is changed before ``install``."""
    state = NormState([], [], [], [], [], [])
    for norm in norms:
        gamma, beta = affine(norm)
        state.gammas.append(gamma)
        state.betas.append(beta)
        state.momenta.append(_momentum(norm))
        if isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor):
            state.running += [norm.running_mean, norm.running_var]
            if _updates(norm):
                state.updated += [norm.running_mean, norm.running_var]
        if _updates(norm) and isinstance(norm.num_batches_tracked, Tensor):
            state.counters.append(norm.num_batches_tracked)
    return state


def install(state: NormState, out: Sequence[Tensor]) -> None:
    """Write the next running statistics, the last tensors of ``out``, into the norms' buffers, and count the batch.

    This comes after the pass, so that a checkpoint which stops its second pass early moves them once, not twice.
    """
    new = out[len(out) - len(state.updated) // 2 :]
    with torch.no_grad():
        if new:
            torch._foreach_copy_(state.updated, [row for pair in new for row in pair])
        if state.counters:
            torch._foreach_add_(state.counters, 1)


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """gamma and beta, or ones and zeros if the norm has none."""
    if isinstance(norm.weight, Tensor) and isinstance(norm.bias, Tensor):
        return norm.weight, norm.bias
    like = norm.running_mean
    if isinstance(like, Tensor):
        return torch.ones_like(like), torch.zeros_like(like)
    # neither affine nor tracked: the module has no tensor, so its device is unknown
    raise ShapeError(
        "a batch norm with affine=False and track_running_stats=False cannot be fused: give it one of them"
    )


def require_rows(norm: nn.Module, rows: int) -> None:
    """Raise torch's ValueError for a single value per channel in training: its variance says nothing."""
    if rows == 1 and uses_batch_statistics(norm) and _group_name(norm) is None:
        raise ValueError(
            "Expected more than 1 value per channel when training: use a larger batch or image, or eval()"
        )


def _updates(norm: nn.Module) -> bool:
    return bool(norm.training and getattr(norm, "track_running_stats", False))


def _momentum(norm: nn.Module) -> float:
    momentum = getattr(norm, "momentum", 0.0)
    if momentum is None:  # torch's cumulative average
        return 1.0 / (float(norm.num_batches_tracked) + 1.0) if _updates(norm) else 0.0  # type: ignore[arg-type]
    return float(momentum)
