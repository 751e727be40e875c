"""Memory layout: activations NHWC and weights KRSC (torch: channels_last of NCHW and KCRS)."""

from __future__ import annotations

import torch
from torch import Tensor


def nhwc(x: Tensor) -> Tensor:
    """``x`` [N, C, H, W], copied only where it is not NHWC in memory already."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_nhwc(like: Tensor, n: int, c: int, h: int, w: int, *, dtype: torch.dtype | None = None) -> Tensor:
    """An unwritten [N, C, H, W] tensor in NHWC memory on the device of ``like``."""
    return torch.empty(
        (n, c, h, w), dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last
    )


def per_channel(vector: Tensor) -> Tensor:
    """[C] to [C, 1, 1], to meet [N, C, H, W]."""
    return vector[:, None, None]
