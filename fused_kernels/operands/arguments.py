"""Kernel arguments that travel together, one object each: ``launch(..., **pixels.named())`` passes them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


class Arguments:
    """Base of dataclasses: each field is a kernel's parameter, written in capitals there."""

    def named(self) -> dict[str, int]:
        """The arguments by the kernel's names, in order."""
        return {name.upper(): value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Pixels(Arguments):
    """A grid of M = N*P*Q pixels, one for each row that a kernel computes, over planes [H, W] that it reads."""

    m: int
    h: int
    w: int
    p: int
    q: int

    @staticmethod
    def over(n: int, plane: Sequence[int], grid: Sequence[int]) -> Pixels:
        """The grid [n, *grid] over n planes of the size ``plane``."""
        (h, w), (p, q) = plane, grid
        return Pixels(n * p * q, h, w, p, q)


@dataclass(frozen=True)
class Strides(Arguments):
    """Elements between neighbours in each dimension of an image [N, C, H, W], which may lie in any memory."""

    stride_n: int
    stride_c: int
    stride_h: int
    stride_w: int

    @staticmethod
    def of(image: Tensor) -> Strides:
        """The strides of ``image``."""
        return Strides(*image.stride())


@dataclass(frozen=True)
class WeightWalk(Arguments):
    """Strides of a product over its weight, and the part of an input pixel that it multiplies."""

    cols: int
    """Columns of the product: output channels."""
    col_stride: int
    """Elements from one column's weights to the next one's; the next two do the same for taps and depth."""
    tap_stride: int
    depth_stride: int
    depth: int
    """Elements of a pixel that are multiplied for one tap."""
    pitch: int
    """Elements from one input pixel to the next."""
    window: int
    """Taps in a row of the window."""
