"""Images packed for a stem, as they are or normalized and quantized on the way: ``kernels/{stem,image}.py``."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.launch import Functor, Out, launch, uses_kernels
from fused_kernels.operands.arguments import Strides
from fused_kernels.operands.geometry import Conv, ceil_div
from fused_kernels.operands.image import Take
from fused_kernels.operands.numeric_types import FLOATS, require_float
from fused_kernels.operands.packed_image import PIXEL, packed_width
from fused_kernels.ops.checks import require_vector
from fused_kernels.references import image as references
from fused_kernels.tiles import Tile

TILE = Tile(256, PIXEL, warps=4)
_REST = {torch.float32: "numerics.float32", torch.float16: "numerics.float16"}


def pack(image: Tensor, conv: Conv, dtype: torch.dtype) -> Tensor:
    """The image as ``operands.packed_image`` describes it, [N, H, WIDTH, 4] of ``dtype``.

    Args:
        image: [N, C, H, W] of 1 to 4 channels, in any memory; floating point, uint8 or int8.
        conv: the window that will read it.
        dtype: fp32, fp16 or bf16; int8 takes an int8 image as it is.
    """
    require_packable(image, dtype)
    n, c, h, w = image.shape
    width = packed_width(conv, w, conv.output_size(h, w)[1])
    if not uses_kernels(image) or dtype == torch.float64:
        return references.pack(image, conv, dtype)
    packed = torch.empty((n, h, width, PIXEL), dtype=dtype, device=image.device)
    launch(
        "stem.pack_kernel", (ceil_div(n * h * width, TILE.m),), TILE,
        image_ptr=image, out_ptr=Out(packed), M=n * h * width, C=c, H=h, W=w, WIDTH=width,
        **Strides.of(image).named(), PADDING=conv.padding, BLOCK=TILE.m,
    )  # fmt: skip
    return packed


def take(image: Tensor, conv: Conv, dtype: torch.dtype, how: Take) -> Tensor:
    """The image, converted and with its margin, as ``operands.packed_image`` describes it, [N, H, WIDTH, 4].

    Args:
        image: [N, C, H, W] of 1 to 4 channels in any memory; fp32, fp16, bf16 or uint8.
        conv: the window that will read it.
        dtype: of the stem's weights: int8 with a scale, fp32, fp16 or bf16 without.
        how: the conversion.
    """
    require_takeable(image, dtype, how)
    n, c, h, w = image.shape
    if not uses_kernels(image):
        return references.pack(references.converted(image, dtype, how), conv, dtype)
    height, columns = h + 2 * how.margin, w + 2 * how.margin
    width = packed_width(conv, columns, conv.output_size(height, columns)[1])
    packed = torch.empty((n, height, width, PIXEL), dtype=dtype, device=image.device)
    launch(
        "image.take_kernel", (ceil_div(n * height * width, TILE.m),), TILE,
        image_ptr=image, factor_ptr=how.factor, offset_ptr=how.offset,
        undo_factor_ptr=how.undo_factor, undo_offset_ptr=how.undo_offset,
        scale=None if how.scale is None else float(how.scale), out_ptr=Out(packed),
        M=n * height * width, C=c, H=h, W=w, HEIGHT=height, WIDTH=width, **Strides.of(image).named(),
        REST=Functor(_REST[how.rest]), PADDING=conv.padding + how.margin, MARGIN=how.margin, BLOCK=TILE.m,
    )  # fmt: skip
    return packed


def require_packable(image: Tensor, dtype: torch.dtype) -> None:
    """Refuse an image that ``pack`` cannot pack as ``dtype``."""
    _require_channels(image)
    from_, to = (str(name).removeprefix("torch.") for name in (image.dtype, dtype))
    if dtype == torch.int8 and image.dtype != torch.int8:
        raise Unsupported(f"an int8 stem takes an int8 image, not {from_}: quantize the image first")
    if dtype != torch.int8:
        require_float(dtype, what="the stem")
    if image.dtype not in (*FLOATS, torch.float64, torch.uint8, torch.int8):
        raise Unsupported(f"the stem takes no {from_} image: convert it to {to}")


def require_takeable(image: Tensor, dtype: torch.dtype, how: Take) -> None:
    """Refuse an image that ``take`` cannot convert to ``dtype``, and a conversion that contradicts itself."""
    _require_channels(image)
    if image.dtype not in (*FLOATS, torch.uint8):
        raise Unsupported(f"images are floating point or uint8, not {image.dtype}")
    if (how.scale is not None) != (dtype == torch.int8):
        raise Unsupported(f"an image takes a scale with int8 weights and with no others, not {dtype}")
    if how.rest not in _REST:
        raise Unsupported(f"an image is normalized in float32 or float16, not in {how.rest}")
    if how.margin < 0:
        raise ShapeError(f"a margin of {how.margin} would cut the image: it is 0 or more")
    for prefix, factor, offset in (
        ("", how.factor, how.offset),
        ("undo_", how.undo_factor, how.undo_offset),
    ):
        if (factor is None) != (offset is None):
            raise ShapeError(f"an image takes {prefix}factor and {prefix}offset, or neither")
        for name, vector in ((f"{prefix}factor", factor), (f"{prefix}offset", offset)):
            if vector is not None:
                require_vector(name, vector, image.shape[1], image)


def _require_channels(image: Tensor) -> None:
    if image.ndim != 4 or not 1 <= image.shape[1] <= PIXEL:
        raise ShapeError(
            f"the stem takes an image [N, C, H, W] of 1 to {PIXEL} channels, not {tuple(image.shape)}"
        )
