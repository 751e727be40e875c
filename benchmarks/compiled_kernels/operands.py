"""Operands without values, on the meta device, in the memory that kernels ask for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.zero_point import COMBINATIONS
from fused_kernels.ops import chain


@dataclass(frozen=True)
class Plane:
    """A size of tensors: [n, c, side, side]."""

    n: int
    c: int
    side: int
    label: str = ""
    """Said in an entry's name where it is not the usual one."""


def activation(plane: Plane, dtype: torch.dtype, stride: int = 1) -> Tensor:
    """[n, c, side/stride, side/stride] in NHWC memory, on the meta device."""
    side = -(-plane.side // stride)
    return torch.empty(
        (plane.n, plane.c, side, side), dtype=dtype, device="meta", memory_format=torch.channels_last
    )


def output(plane: Plane, conv: Conv, dtype: torch.dtype) -> Tensor:
    """A tensor with the shape of ``conv``'s output for ``activation(plane)``."""
    return activation(Plane(plane.n, plane.c, conv.output_size(plane.side, plane.side)[0]), dtype)


def weight(plane: Plane, conv: Conv, dtype: torch.dtype) -> Tensor:
    """[c, c, r, s] in KRSC memory."""
    return torch.empty(
        (plane.c, plane.c, conv.r, conv.s), dtype=dtype, device="meta", memory_format=torch.channels_last
    )


def vector(c: int) -> Tensor:
    """fp32 [c]."""
    return torch.empty((c,), device="meta")


def table(c: int) -> Tensor:
    """int32 [16, c]: zero sums."""
    return torch.empty((COMBINATIONS, c), dtype=torch.int32, device="meta")


def batch_norm(c: int) -> Tensor:
    """fp32 [4, c]: the vectors of a batch norm."""
    return torch.empty((4, c), device="meta")


def folded(k: int, c: int, side: int, dtype: torch.dtype, *, relu: bool = True) -> chain.Folded:
    """A folded convolution [k, c, side, side]."""
    w = torch.empty((k, c, side, side), dtype=dtype, device="meta", memory_format=torch.channels_last)
    return chain.Folded(w, vector(k), vector(k) if dtype == torch.int8 else None, relu=relu)
