"""References of ``ops.image``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.image import Take
from fused_kernels.operands.layout import per_channel
from fused_kernels.operands.packed_image import PIXEL, packed_width
from fused_kernels.references.arithmetic import to_int8


def pack(image: Tensor, conv: Conv, dtype: torch.dtype) -> Tensor:
    n, c, h, w = image.shape
    width = packed_width(conv, w, conv.output_size(h, w)[1])
    packed = torch.zeros((n, h, width, PIXEL), dtype=dtype, device=image.device)
    packed[:, :, conv.padding : conv.padding + w, :c] = image.permute(0, 2, 3, 1)
    return packed


def converted(image: Tensor, dtype: torch.dtype, how: Take) -> Tensor:
    """The image that ``ops.image.take`` packs, [N, C, H, W] of ``dtype``, with the kernel's bits."""
    v = image.to(how.rest).float()
    if how.factor is not None and how.offset is not None:
        v = _scaled(v, how.factor, how.offset, how.rest)
    v = F.pad(v, [how.margin] * 4)
    if how.undo_factor is not None and how.undo_offset is not None:
        v = _scaled(v, how.undo_factor, how.undo_offset, how.rest)
    if how.scale is None:
        return v.to(dtype)
    return to_int8(v / torch.tensor(how.scale, dtype=torch.float32), low=-128)


def _scaled(v: Tensor, factor: Tensor, offset: Tensor, rest: torch.dtype) -> Tensor:
    v = (v * per_channel(factor)).to(rest).float()
    return (v + per_channel(offset)).to(rest).float()
