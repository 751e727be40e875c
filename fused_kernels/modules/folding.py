"""Batch norms folded into weights for inference, cached until one of their tensors changes."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fused_kernels.modules.norm import affine
from fused_kernels.ops.inference import fold

Stamp = tuple[object, ...]
_kept: WeakKeyDictionary[nn.Module, tuple[Stamp, Tensor, Tensor]] = WeakKeyDictionary()


def folded(
    pairs: Sequence[tuple[nn.Conv2d, nn.Module]], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights [K, C, R, S] in ``dtype`` and fp32 biases [K] of convolutions with their batch norms folded in."""
    both = [_folded(conv, norm, dtype) for conv, norm in pairs]
    return [weight for weight, _ in both], [bias for _, bias in both]


def _folded(conv: nn.Conv2d, norm: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():  # a graph must not hold on to today's weights
        return _fold(conv, norm, dtype)
    stamp = _stamp(conv, norm, dtype)
    kept = _kept.get(conv)
    if kept is None or kept[0] != stamp:
        kept = (stamp, *_fold(conv, norm, dtype))
        _kept[conv] = kept
    return kept[1], kept[2]


def _fold(conv: nn.Conv2d, norm: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    gamma, beta = affine(norm)
    mean, var, eps = norm.running_mean, norm.running_var, norm.eps
    assert isinstance(mean, Tensor)
    assert isinstance(var, Tensor)
    assert isinstance(eps, float)
    with torch.no_grad():
        weight, bias = fold(conv.weight, gamma, beta, mean, var, eps)
        return weight.to(dtype, memory_format=torch.channels_last), bias


def _stamp(conv: nn.Conv2d, norm: nn.Module, dtype: torch.dtype) -> Stamp:
    tensors = [conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]
    # an inference tensor has no version counter: it cannot change in place outside of inference mode
    stamps = [
        (tensor.data_ptr(), tensor.device, 0 if tensor.is_inference() else tensor._version)
        for tensor in tensors
        if isinstance(tensor, Tensor)
    ]
    return (dtype, float(norm.eps), *stamps)  # type: ignore[arg-type]
