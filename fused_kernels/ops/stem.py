"""A network's first layers: convolution of an image, batch norm, ReLU and, on large images, max pool 3x3/2.

    stem_conv_moments   y = conv(image)             + mean and M2 of y by channel, and the image as packed for it
    stem_pool           z = maxpool(relu(bn(y)))    + where each maximum was
    stem_pool_sums      sums for that batch norm's backward
    stem_pool_backward  gradient of y, by the coefficients made of them
    stem_wgrad          dw from the packed image and dy
    stem_inference      maxpool(relu(conv(image) + bias)), in floating point or int8

Every activation is [N, C, H, W] in NHWC memory. The image may lie anyhow: ``pack`` reads it once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fused_kernels import stem_references
from fused_kernels.choice import REFERENCE, Chosen, chosen_for
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.geometry import Conv
from fused_kernels.launch import Out, launch, uses_kernels
from fused_kernels.layout import empty_nhwc, nhwc
from fused_kernels.numeric_types import FLOATS, require_float
from fused_kernels.ops import stem_launch
from fused_kernels.ops.image import Take, check_taken, taken
from fused_kernels.ops.image import take as take_image
from fused_kernels.ops.inference import require_vector
from fused_kernels.ops.partials import Partials, empty_partials
from fused_kernels.ops.passes import launch_pass, pass_tile, rows_and_channels
from fused_kernels.problem import Problem
from fused_kernels.stem_layout import PIXEL, depth, packed_width, unpack_weight
from fused_kernels.tiles import Tile

POOL = Conv(3, 3, stride=2, padding=1)
"""The max pool's window."""
PACK_TILE = Tile(256, PIXEL, warps=4)


def pack(image: Tensor, conv: Conv, dtype: torch.dtype) -> Tensor:
    """The image as ``stem_layout`` describes it, [N, H, WIDTH, 4] of ``dtype``.

    Args:
        image: [N, C, H, W] of 1 to 4 channels, in any memory; floating point, uint8 or int8.
        conv: the window that will read it.
        dtype: fp32, fp16 or bf16; int8 takes an int8 image as it is.

    Raises:
        ShapeError, Unsupported: no image, or a dtype that it cannot become.
    """
    _check_image(image, dtype)
    n, c, h, w = image.shape
    width = packed_width(conv, w, conv.output_size(h, w)[1])
    if not uses_kernels(image) or dtype == torch.float64:
        return stem_references.pack(image, conv, dtype)
    packed = torch.empty((n, h, width, PIXEL), dtype=dtype, device=image.device)
    stride_n, stride_c, stride_h, stride_w = image.stride()
    launch(
        "stem.pack_kernel",
        (-(-n * h * width // PACK_TILE.m),),
        PACK_TILE,
        image_ptr=image,
        out_ptr=Out(packed),
        **{"M": n * h * width, "C": c, "H": h, "W": w, "WIDTH": width},
        **{"STRIDE_N": stride_n, "STRIDE_C": stride_c, "STRIDE_H": stride_h, "STRIDE_W": stride_w},
        **{"PADDING": conv.padding, "BLOCK": PACK_TILE.m},
    )
    return packed


def stem_conv_moments(image: Tensor, w: Tensor, conv: Conv) -> tuple[Tensor, Partials, Tensor]:
    """Convolve an image and collect the output's moments.

    Args:
        image: as in ``pack``.
        w: [K, C, R, S] in fp32, fp16 or bf16, which the image is converted to.
        conv: the window.

    Returns:
        y [N, K, P, Q] in the dtype of ``w``; partials of kinds (mean, M2) of y as stored; the packed image, for
        ``stem_wgrad``.

    Raises:
        ShapeError, Unsupported: operands that do not fit, or a dtype without a kernel.
    """
    require_float(w.dtype, what="training a stem")
    tile = _fprop_tile(image, w, conv, "stem_moments")
    if tile == REFERENCE:
        return stem_references.stem_conv_moments(image, w, conv)
    packed, y = pack(image, conv, w.dtype), _empty_output(image, w, conv)
    rows, _ = rows_and_channels(y)
    partials = empty_partials(y, 2, -(-rows // tile.m), moments=True)
    stem_launch.fprop(packed, w, y, conv, tile, "moments", (Out(partials), partials.shape[1]))
    return y, Partials(partials, tile.m, rows), packed


def stem_conv(image: Tensor, w: Tensor, conv: Conv) -> tuple[Tensor, Tensor]:
    """As ``stem_conv_moments`` without the moments, for a batch norm whose statistics are constants: (y, packed)."""
    require_float(w.dtype, what="training a stem")
    tile = _fprop_tile(image, w, conv, "stem_store")
    if tile == REFERENCE:
        return stem_references.stem_conv(image, w, conv)
    packed, y = pack(image, conv, w.dtype), _empty_output(image, w, conv)
    stem_launch.fprop(packed, w, y, conv, tile, "store", ())
    return y, packed


def stem_pool(y: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """maxpool3x3/2(relu(bn(y))), padding 1.

    Args:
        y: output of the convolution, [N, K, P, Q].
        vectors: fp32 [4, K] of its batch norm: mean, invstd, scale, shift.

    Returns:
        z [N, K, ceil(P/2), ceil(Q/2)] in the dtype of ``y``, and uint8 of that shape: the place, 0 to 8 in reading
        order, that each maximum has in its window. Of equal values the first wins, a NaN beats all, as in torch.
    """
    if not uses_kernels(y):
        return stem_references.stem_pool(y, vectors)
    y = nhwc(y)
    n, k, p, q = y.shape
    z = empty_nhwc(y, n, k, *POOL.output_size(p, q))
    index = empty_nhwc(z, *z.shape, dtype=torch.uint8)
    launch_pass(
        "stem.pool_kernel",
        _pool_tile(k),
        z,
        y_ptr=y,
        vectors_ptr=vectors,
        z_ptr=Out(z),
        index_ptr=Out(index),
        **_planes(y, z),
    )
    return z, index


def stem_pool_sums(dz: Tensor, index: Tensor, y: Tensor, vectors: Tensor) -> Partials:
    """Sums over g, the gradient of ``stem_pool`` by bn(y), which is not stored.

    Args:
        dz: gradient of z, in its shape.
        index: from ``stem_pool``.
        y: what ``stem_pool`` took.
        vectors: likewise.

    Returns:
        partials of kinds (sum g, sum g * (y - mean)).
    """
    if not uses_kernels(y):
        return stem_references.stem_pool_sums(dz, index, y, vectors)
    dz, index, y = nhwc(dz), nhwc(index), nhwc(y)
    arguments = {"dz_ptr": dz, "index_ptr": index, **_planes(y, dz)}
    return _sums_pass("stem.pool_sums_kernel", _pool_tile(y.shape[1]), y, vectors, arguments)


def stem_pool_backward(dz: Tensor, index: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    """Gradient of ``stem_pool`` by y: a * g + b * (y - mean) + c, with g as in ``stem_pool_sums``.

    Args:
        dz: as there.
        index: as there.
        y: as there.
        vectors: as there.
        coefficients: fp32 [3, K], from ``statistics.coefficients``.

    Returns:
        dy in the shape and dtype of ``y``.
    """
    if not uses_kernels(y):
        return stem_references.stem_pool_backward(dz, index, y, vectors, coefficients)
    dz, index, y = nhwc(dz), nhwc(index), nhwc(y)
    arguments = {"dz_ptr": dz, "index_ptr": index, **_planes(y, dz)}
    tile = _pool_tile(y.shape[1])
    return _gradient_pass("stem.pool_backward_kernel", tile, y, vectors, coefficients, arguments)


def stem_activate(y: Tensor, vectors: Tensor) -> Tensor:
    """relu(bn(y)): ``stem_pool`` for a stem without max pool."""
    if not uses_kernels(y):
        return stem_references.stem_activate(y, vectors)
    y = nhwc(y)
    z = torch.empty_like(y)
    tile = pass_tile(y.shape[1])
    launch_pass("stem.activate_kernel", tile, z, y_ptr=y, vectors_ptr=vectors, z_ptr=Out(z))
    return z


def stem_activate_sums(dz: Tensor, y: Tensor, vectors: Tensor) -> Partials:
    """Sums over the gradient of ``stem_activate`` by bn(y), as ``stem_pool_sums``."""
    if not uses_kernels(y):
        return stem_references.stem_activate_sums(dz, y, vectors)
    dz, y = nhwc(dz), nhwc(y)
    return _sums_pass("stem.activate_sums_kernel", pass_tile(y.shape[1]), y, vectors, {"dz_ptr": dz})


def stem_activate_backward(dz: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    """Gradient of ``stem_activate`` by y, as ``stem_pool_backward``."""
    if not uses_kernels(y):
        return stem_references.stem_activate_backward(dz, y, vectors, coefficients)
    dz, y = nhwc(dz), nhwc(y)
    tile = pass_tile(y.shape[1])
    return _gradient_pass("stem.activate_backward_kernel", tile, y, vectors, coefficients, {"dz_ptr": dz})


def stem_wgrad(packed: Tensor, dy: Tensor, conv: Conv, channels: int) -> Tensor:
    """Gradient of the weight.

    Args:
        packed: the image, from ``stem_conv_moments``.
        dy: gradient of y, [N, K, P, Q], in the dtype of ``packed``.
        conv: the window.
        channels: of the image.

    Returns:
        dw fp32 [K, channels, R, S] in KRSC memory.
    """
    n, k, p, q = dy.shape
    columns = conv.r * depth(conv)
    # all taps at once: for the choice of a tile a 1x1 convolution of as many channels, on the output's plane
    problem = Problem("wgrad", packed.dtype, n, p, q, columns, k, Conv(1, 1), "identity", "stem")
    tile = chosen_for(problem, packed)
    if tile == REFERENCE:
        return stem_references.stem_wgrad(packed, dy, conv, channels)
    dw = torch.empty((k, conv.r, depth(conv)), dtype=torch.float32, device=dy.device)
    stem_launch.wgrad(dw, packed, nhwc(dy), conv, tile)
    return unpack_weight(dw, conv, channels)


def stem_inference(
    image: Tensor,
    w: Tensor,
    bias: Tensor,
    conv: Conv,
    *,
    pool: bool = True,
    scale: Tensor | None = None,
    relu: bool = True,
    take: Take | None = None,
) -> Tensor:
    """relu(conv(image) + bias), then max pool 3x3/2 with padding 1; in int8, requantized before the ReLU.

    What lies beside the plane is never the maximum, whichever numbers the pool reads.

    Args:
        image: as in ``pack``; int8 where ``w`` is, unless ``take`` quantizes it.
        w: [K, C, R, S] in fp32, fp16 or bf16, which the image is converted to; or int8.
        bias: fp32 [K]; in int8 in units of the output's scale.
        conv: the window.
        pool: whether there is a max pool.
        scale: only in int8, fp32 [K] and positive: input scale * weight scale / output scale.
        relu: whether there is a ReLU, as there must be in floating point; without one int8 saturates to [-128, 127].
        take: how the image is normalized and quantized while it is packed; None takes it as it is.

    Returns:
        [N, K, P', Q'] in the dtype of ``w``; in int8 round_half_even(conv * scale + bias), saturated.

    Raises:
        ShapeError, Unsupported: operands that do not fit, or a dtype without a kernel.
    """
    if (scale is not None) != (w.dtype == torch.int8):
        raise Unsupported(f"the stem takes a scale with int8 weights and with no others, not {w.dtype}")
    if scale is None and not relu:
        raise Unsupported(
            "the stem goes without its ReLU in int8 alone, which saturates in its place: pass relu=True"
        )
    for name, vector in (("bias", bias), ("scale", scale)):
        if vector is not None:
            require_vector(name, vector, w.shape[0], w)
    # as the image sees it: the margin is padding that ``take`` has put there
    window = conv if take is None else replace(conv, padding=conv.padding + take.margin)
    tile = _fprop_tile(image, w, window, "stem_pool" if pool else "stem_bias_relu", take)
    if tile == REFERENCE:
        image = image if take is None else taken(image, w.dtype, take)
        return stem_references.stem_inference(image, w, bias, conv, pool=pool, scale=scale, relu=relu)
    packed = pack(image, conv, w.dtype) if take is None else take_image(image, conv, w.dtype, take)
    out = _empty_output(image, w, window)
    epilogue, args = "bias_relu", tuple[Tensor, ...]((bias,))
    if scale is not None:
        epilogue, args = "requantize_relu" if relu else "requantize", (scale, bias)
    if not pool:
        stem_launch.fprop(packed, w, out, conv, tile, epilogue, args)
        return out
    n, k, p, q = out.shape
    pooled = empty_nhwc(out, n, k, *POOL.output_size(p, q))
    stem_launch.conv_pool(packed, w, pooled, (p, q), conv, tile, epilogue, args)
    return pooled


def _sums_pass(kernel: str, tile: Tile, y: Tensor, vectors: Tensor, arguments: dict[str, Any]) -> Partials:
    rows, _ = rows_and_channels(y)
    partials = empty_partials(y, 2, -(-rows // tile.m))
    sums = {"partials_ptr": Out(partials), "tiles": partials.shape[1]}
    launch_pass(kernel, tile, y, **arguments, y_ptr=y, vectors_ptr=vectors, **sums)
    return Partials(partials, tile.m, rows)


def _gradient_pass(
    kernel: str, tile: Tile, y: Tensor, vectors: Tensor, coefficients: Tensor, arguments: dict[str, Any]
) -> Tensor:
    dy = torch.empty_like(y)
    small = {"vectors_ptr": vectors, "coefficients_ptr": coefficients}
    launch_pass(kernel, tile, y, **arguments, y_ptr=y, **small, dy_ptr=Out(dy))
    return dy


def _pool_tile(channels: int) -> Tile:
    """A quarter of a pass's tile: every element of it lives through nine loads, or four pairs of them."""
    tile = pass_tile(channels)
    return replace(tile, m=tile.m // 4)


def _planes(y: Tensor, z: Tensor) -> dict[str, int]:
    return {"P": y.shape[2], "Q": y.shape[3], "POOLED_H": z.shape[2], "POOLED_W": z.shape[3]}


def _empty_output(image: Tensor, w: Tensor, conv: Conv) -> Tensor:
    n, _, height, width = image.shape
    return empty_nhwc(w, n, w.shape[0], *conv.output_size(height, width))


def _fprop_tile(image: Tensor, w: Tensor, conv: Conv, epilogue: str, take: Take | None = None) -> Chosen:
    """The tile that convolves this image, or "reference" where plain PyTorch does."""
    if take is None:
        _check_image(image, w.dtype)
    else:
        check_taken(image, w.dtype, take)
    _check(image, w, conv)
    n, _, height, width = image.shape
    problem = Problem("fprop", w.dtype, n, height, width, depth(conv), w.shape[0], conv, "identity", epilogue)
    return chosen_for(problem, w)


def _check_image(image: Tensor, dtype: torch.dtype) -> None:
    if image.ndim != 4 or not 1 <= image.shape[1] <= PIXEL:
        raise ShapeError(
            f"the stem takes an image [N, C, H, W] of 1 to {PIXEL} channels, not {tuple(image.shape)}"
        )
    from_, to = (str(name).removeprefix("torch.") for name in (image.dtype, dtype))
    if dtype == torch.int8 and image.dtype != torch.int8:
        raise Unsupported(f"an int8 stem takes an int8 image, not {from_}: quantize the image first")
    if dtype != torch.int8:
        require_float(dtype, what="the stem")
    if image.dtype not in (*FLOATS, torch.float64, torch.uint8, torch.int8):
        raise Unsupported(f"the stem takes no {from_} image: convert it to {to}")


def _check(image: Tensor, w: Tensor, conv: Conv) -> None:
    if w.ndim != 4 or image.shape[1] != w.shape[1] or w.shape[2:] != (conv.r, conv.s):
        raise ShapeError(
            f"image {tuple(image.shape)} and w {tuple(w.shape)} do not fit a {conv.r}x{conv.s} convolution:"
            " an image is [N, C, H, W] and w [K, C, R, S]"
        )
