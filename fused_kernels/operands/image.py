"""Conversion of an application's image to the operand of a stem."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Take:
    """Steps from an image [N, C, H, W], in any memory, to the operand of a stem.

    v = image * factor + offset, then int8(v / scale), to the nearest, ties to even, saturated. For a stem that reads
    pixels, ``margin`` zeros, its own padding, are first put around v, and v * undo_factor + undo_offset makes pixels
    of all of them.
    """

    factor: Tensor | None = None
    """fp32 [C]; None takes the image as it is."""
    offset: Tensor | None = None
    """fp32 [C], where there is a factor."""
    scale: float | None = None
    """Scale of the quantized image, where the stem is int8; taken as fp32."""
    rest: torch.dtype = torch.float32
    """fp32 or fp16: the dtype that every step before the quantization is rounded to."""
    undo_factor: Tensor | None = None
    """fp32 [C]; None where v is not mapped back."""
    undo_offset: Tensor | None = None
    """fp32 [C], where there is an ``undo_factor``."""
    margin: int = 0
    """Zeros on every side of the normalized image, for a convolution without padding."""
