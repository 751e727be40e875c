"""Batch norms folded into weights for inference, kept until one of their tensors changes.

Folded tensors are renewed in place: a CUDA graph reads the same memory at each replay. What changes a tensor behind
autograd's back (``tensor.data``, optimizers with ``fused=True``) changes none of its versions, so a pass that is not
folded and a change of mode make folded tensors stale, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fused_kernels.modules.norm import affine
from fused_kernels.ops.inference import fold

Stamp = tuple[object, ...]


@dataclass
class Folded:
    """A convolution's weight [K, C, R, S] and fp32 bias [K], with its batch norm folded in."""

    norm: nn.Module
    weight: Tensor
    bias: Tensor
    stamp: Stamp | None
    """What it was made of; None where that cannot be known any more."""

    def renew(self, conv: nn.Conv2d) -> None:
        """Fold again, into the same memory, if what it was made of has changed."""
        stamp = _stamp(conv, self.norm)
        if stamp == self.stamp:
            return
        weight, bias = _fold(conv, self.norm, self.weight.dtype)
        with torch.inference_mode():  # tensors that were made in this mode cannot change outside of it
            self.weight.copy_(weight)
            self.bias.copy_(bias)
        self.stamp = stamp

    def belongs_to(self, conv: nn.Conv2d, norm: nn.Module) -> bool:
        """Whether it can be renewed for these two modules."""
        return (
            self.norm is norm
            and self.weight.shape == conv.weight.shape
            and self.weight.device == conv.weight.device
        )


_kept: WeakKeyDictionary[nn.Module, dict[torch.dtype, Folded]] = WeakKeyDictionary()


def folded(
    pairs: Sequence[tuple[nn.Conv2d, nn.Module]], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Weights [K, C, R, S] in ``dtype`` and fp32 biases [K] of convolutions with their batch norms folded in."""
    both = [_folded(conv, norm, dtype) for conv, norm in pairs]
    return [weight for weight, _ in both], [bias for _, bias in both]


def forget(*convolutions: nn.Module) -> None:
    """Fold these convolutions again before their next use, whether their tensors seem changed or not."""
    if torch.compiler.is_compiling():  # inside a graph nothing is kept
        return
    for conv in convolutions if _kept else ():
        for entry in _kept.get(conv, {}).values():
            entry.stamp = None


def kept_of(network: nn.Module) -> Iterator[tuple[nn.Conv2d, Folded]]:
    """The folded tensors that ``network`` uses, beside their convolutions."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            yield from ((module, entry) for entry in _kept.get(module, {}).values())


def _folded(conv: nn.Conv2d, norm: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if torch.compiler.is_compiling():  # a graph must not hold on to today's weights
        return _fold(conv, norm, dtype)
    entries = _kept.setdefault(conv, {})
    entry = entries.get(dtype)
    if entry is None or not entry.belongs_to(conv, norm):
        stamp = _stamp(conv, norm)
        entry = entries[dtype] = Folded(norm, *_fold(conv, norm, dtype), stamp)
    entry.renew(conv)
    return entry.weight, entry.bias


def _fold(conv: nn.Conv2d, norm: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    gamma, beta = affine(norm)
    mean, var, eps = norm.running_mean, norm.running_var, norm.eps
    assert isinstance(mean, Tensor)
    assert isinstance(var, Tensor)
    assert isinstance(eps, float)
    with torch.no_grad():
        weight, bias = fold(conv.weight, gamma, beta, mean, var, eps)
        return weight.to(dtype, memory_format=torch.channels_last), bias


def _stamp(conv: nn.Conv2d, norm: nn.Module) -> Stamp:
    tensors = [conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]
    # an inference tensor has no version counter: it cannot change in place outside of inference mode
    stamps = [
        (tensor.data_ptr(), tensor.device, 0 if tensor.is_inference() else tensor._version)
        for tensor in tensors
        if isinstance(tensor, Tensor)
    ]
    return (float(norm.eps), *stamps)  # type: ignore[arg-type]
