"""From an application's image to what a stem multiplies: normalized, quantized and packed by ``kernels/image.py``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.geometry import Conv
from fused_kernels.launch import Functor, Out, launch, uses_kernels
from fused_kernels.layout import per_channel
from fused_kernels.numeric_types import FLOATS
from fused_kernels.stem_layout import PIXEL, packed_width
from fused_kernels.stem_references import pack
from fused_kernels.tiles import Tile

TAKE_TILE = Tile(256, PIXEL, warps=4)
_REST = {torch.float32: "numerics.float32", torch.float16: "numerics.float16"}


@dataclass(frozen=True)
class Take:
    """How an image [N, C, H, W], of any memory, becomes a stem's operand.

    v = image * factor + offset, then int8(v / scale), to the nearest, ties to even, saturated. A stem that reads pixels
    has the way back between them, v * undo_factor + undo_offset, and in front of that ``margin``, its own padding.
    """

    factor: Tensor | None = None
    """fp32 [C]; None takes the image as it is."""
    offset: Tensor | None = None
    """fp32 [C], where there is a factor."""
    scale: float | None = None
    """Of the quantized image, where the stem is int8; taken as fp32."""
    rest: torch.dtype = torch.float32
    """fp32 or fp16: what every step before the quantization is rounded to."""
    undo_factor: Tensor | None = None
    """fp32 [C]; None where there is no way back."""
    undo_offset: Tensor | None = None
    """fp32 [C], where there is an ``undo_factor``."""
    margin: int = 0
    """Zeros on every side of the normalized image, for a convolution without padding."""


def take(image: Tensor, conv: Conv, dtype: torch.dtype, how: Take) -> Tensor:
    """The image with its margin as ``stem_layout`` packs it, [N, H, WIDTH, 4] of ``dtype``.

    Args:
        image: [N, C, H, W] of 1 to 4 channels in any memory; fp32, fp16, bf16 or uint8.
        conv: the window that will read it.
        dtype: of the stem's weights: int8 with a scale, fp32, fp16 or bf16 without.
        how: what is done to it.

    Raises:
        ShapeError, Unsupported: no image, or vectors, scale or a dtype that do not fit.
    """
    check_taken(image, dtype, how)
    n, c, h, w = image.shape
    if not uses_kernels(image):
        return pack(taken(image, dtype, how), conv, dtype)
    height, columns = h + 2 * how.margin, w + 2 * how.margin
    width = packed_width(conv, columns, conv.output_size(height, columns)[1])
    packed = torch.empty((n, height, width, PIXEL), dtype=dtype, device=image.device)
    stride_n, stride_c, stride_h, stride_w = image.stride()
    launch(
        "image.take_kernel",
        (-(-n * height * width // TAKE_TILE.m),),
        TAKE_TILE,
        image_ptr=image,
        factor_ptr=how.factor,
        offset_ptr=how.offset,
        undo_factor_ptr=how.undo_factor,
        undo_offset_ptr=how.undo_offset,
        scale=None if how.scale is None else float(how.scale),
        out_ptr=Out(packed),
        **{"M": n * height * width, "C": c, "H": h, "W": w, "HEIGHT": height, "WIDTH": width},
        **{"STRIDE_N": stride_n, "STRIDE_C": stride_c, "STRIDE_H": stride_h, "STRIDE_W": stride_w},
        REST=Functor(_REST[how.rest]),
        **{"PADDING": conv.padding + how.margin, "MARGIN": how.margin, "BLOCK": TAKE_TILE.m},
    )
    return packed


def taken(image: Tensor, dtype: torch.dtype, how: Take) -> Tensor:
    """What ``take`` packs, unpacked: [N, C, H, W] of ``dtype``, in plain PyTorch, with the kernel's bits."""
    v = image.to(how.rest).float()
    if how.factor is not None and how.offset is not None:
        v = _scaled(v, how.factor, how.offset, how.rest)
    v = F.pad(v, [how.margin] * 4)
    if how.undo_factor is not None and how.undo_offset is not None:
        v = _scaled(v, how.undo_factor, how.undo_offset, how.rest)
    if how.scale is None:
        return v.to(dtype)
    return torch.round(v / torch.tensor(how.scale, dtype=torch.float32)).clamp(-128, 127).to(torch.int8)


def _scaled(v: Tensor, factor: Tensor, offset: Tensor, rest: torch.dtype) -> Tensor:
    v = (v * per_channel(factor)).to(rest).float()
    return (v + per_channel(offset)).to(rest).float()


def check_taken(image: Tensor, dtype: torch.dtype, how: Take) -> None:
    """Refuse what ``take`` does not take.

    Raises:
        ShapeError, Unsupported: see ``take``.
    """
    if image.ndim != 4 or not 1 <= image.shape[1] <= PIXEL:
        raise ShapeError(
            f"the stem takes an image [N, C, H, W] of 1 to {PIXEL} channels, not {tuple(image.shape)}"
        )
    if image.dtype not in (*FLOATS, torch.uint8):
        raise Unsupported(f"images are floating point or uint8, not {image.dtype}")
    if (how.scale is not None) != (dtype == torch.int8):
        raise Unsupported(f"an image takes a scale with int8 weights and with no others, not {dtype}")
    if how.rest not in _REST:
        raise Unsupported(f"an image is normalized in float32 or float16, not in {how.rest}")
    vectors = {
        "factor": how.factor,
        "offset": how.offset,
        "undo_factor": how.undo_factor,
        "undo_offset": how.undo_offset,
    }
    for prefix in ("", "undo_"):
        if (vectors[f"{prefix}factor"] is None) != (vectors[f"{prefix}offset"] is None):
            raise ShapeError(f"an image takes {prefix}factor and {prefix}offset, or neither")
    if how.margin < 0:
        raise ShapeError(f"a margin of {how.margin} would cut the image: it is 0 or more")
    for name, vector in vectors.items():
        if vector is not None and (vector.shape != image.shape[1:2] or vector.dtype != torch.float32):
            raise ShapeError(
                f"{name} is {vector.dtype} {tuple(vector.shape)}, not float32 ({image.shape[1]},)"
            )
