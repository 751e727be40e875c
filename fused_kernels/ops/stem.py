"""A network's first layers: convolution of an image, batch norm, ReLU and, on large images, max pool 3x3/2.

    stem_conv_moments   y = conv(image)             + mean and M2 of y by channel, and the image as packed for it
    stem_conv           y without the moments       + the packed image
    stem_pool           z = maxpool(relu(bn(y)))    + where each maximum was
    stem_pool_sums      sums for that batch norm's backward
    stem_pool_backward  gradient of y, by the coefficients made of them
    stem_activate_sums, stem_activate_backward      the same for a stem without max pool, after ``passes.activate``
    stem_wgrad          dw from the packed image and dy
    stem_inference      maxpool(relu(conv(image) + bias)), in floating point or int8

Every activation is [N, C, H, W] in NHWC memory. The image may lie in any memory: packing reads it once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fused_kernels.choice import REFERENCE, Chosen, chosen_for
from fused_kernels.errors import Unsupported
from fused_kernels.launch import Out, launch, uses_kernels
from fused_kernels.operands.arguments import Pixels
from fused_kernels.operands.folded import Folded
from fused_kernels.operands.geometry import Conv, ceil_div
from fused_kernels.operands.image import Take
from fused_kernels.operands.layout import empty_nhwc, nhwc
from fused_kernels.operands.numeric_types import precision, require_float
from fused_kernels.operands.packed_image import depth, pack_weight, unpack_weight
from fused_kernels.operands.partials import Partials
from fused_kernels.ops.checks import require_convolution, require_vector
from fused_kernels.ops.image import pack, require_packable, require_takeable
from fused_kernels.ops.image import take as take_image
from fused_kernels.ops.inference import bias_epilogue
from fused_kernels.ops.passes import launch_pass, pass_tile
from fused_kernels.ops.products import STORE, Fused, compiled_for, moments, packed_fprop
from fused_kernels.ops.splits import add_up, parts_of, workspace
from fused_kernels.problem import Problem
from fused_kernels.references import stem as references
from fused_kernels.references.image import converted
from fused_kernels.tiles import Tile

POOL = Conv(3, 3, stride=2, padding=1)
"""The max pool's window."""
LONGEST_STRIP = 8
PROGRAMS = 264
"""Two for each of a Hopper's 132 processors."""


def stem_conv_moments(image: Tensor, w: Tensor, conv: Conv) -> tuple[Tensor, Partials, Tensor]:
    """Convolve an image and collect the output's moments.

    Args:
        image: as ``ops.image.pack`` takes it.
        w: [K, C, R, S] in fp32, fp16 or bf16, which the image is converted to.
        conv: the window.

    Returns:
        y [N, K, P, Q] in the dtype of ``w``; partials of kinds (mean, M2) of y as stored; the packed image, for
        ``stem_wgrad``.
    """
    require_float(w.dtype, what="training a stem")
    tile = _fprop_tile(image, w, conv, "stem_moments")
    if tile == REFERENCE:
        return references.stem_conv_moments(image, w, conv)
    packed, y = pack(image, conv, w.dtype), _empty_output(image, w, conv)
    partials = Partials.empty(y, 2, tile.m, moments=True)
    packed_fprop(packed, w, y, conv, tile, moments(partials))
    return y, partials, packed


def stem_conv(image: Tensor, w: Tensor, conv: Conv) -> tuple[Tensor, Tensor]:
    """``stem_conv_moments`` without the moments, for a batch norm whose statistics are constants: (y, packed)."""
    require_float(w.dtype, what="training a stem")
    tile = _fprop_tile(image, w, conv, "stem_store")
    if tile == REFERENCE:
        return references.stem_conv(image, w, conv)
    packed, y = pack(image, conv, w.dtype), _empty_output(image, w, conv)
    packed_fprop(packed, w, y, conv, tile, STORE)
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
        return references.stem_pool(y, vectors)
    y = nhwc(y)
    n, k, p, q = y.shape
    z = empty_nhwc(y, n, k, *POOL.output_size(p, q))
    index = empty_nhwc(z, *z.shape, dtype=torch.uint8)
    launch_pass(
        "stem.pool_kernel", z, _pool_tile(k),
        y_ptr=y, vectors_ptr=vectors, z_ptr=Out(z), index_ptr=Out(index), **_planes(y, z),
    )  # fmt: skip
    return z, index


def stem_pool_sums(dz: Tensor, index: Tensor, y: Tensor, vectors: Tensor) -> Partials:
    """Sums over g, the gradient by bn(y) of ``stem_pool``; g itself is not stored.

    Args:
        dz: gradient of z, in its shape.
        index: from ``stem_pool``.
        y: the input of ``stem_pool``.
        vectors: those of ``stem_pool``.

    Returns:
        partials of kinds (sum g, sum g * (y - mean)).
    """
    if not uses_kernels(y):
        return references.stem_pool_sums(dz, index, y, vectors)
    return _sums("stem.pool_sums_kernel", _pool_tile(y.shape[1]), y, vectors, _pooled_gradient(dz, index, y))


def stem_pool_backward(dz: Tensor, index: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    """Gradient of ``stem_pool`` by y: a * g + b * (y - mean) + c, with g as in ``stem_pool_sums``.

    ``coefficients`` are fp32 [3, K] from ``statistics.coefficients``; dy has the shape and dtype of ``y``.
    """
    if not uses_kernels(y):
        return references.stem_pool_backward(dz, index, y, vectors, coefficients)
    kernel, tile = "stem.pool_backward_kernel", _pool_tile(y.shape[1])
    return _gradient(kernel, tile, y, vectors, coefficients, _pooled_gradient(dz, index, y))


def stem_activate_sums(dz: Tensor, y: Tensor, vectors: Tensor) -> Partials:
    """Sums over the gradient of ``passes.activate`` by bn(y), as ``stem_pool_sums``."""
    if not uses_kernels(y):
        return references.stem_activate_sums(dz, y, vectors)
    return _sums("stem.activate_sums_kernel", pass_tile(y.shape[1]), y, vectors, {"dz_ptr": nhwc(dz)})


def stem_activate_backward(dz: Tensor, y: Tensor, vectors: Tensor, coefficients: Tensor) -> Tensor:
    """Gradient of ``passes.activate`` by y, as ``stem_pool_backward``."""
    if not uses_kernels(y):
        return references.stem_activate_backward(dz, y, vectors, coefficients)
    kernel, tile = "stem.activate_backward_kernel", pass_tile(y.shape[1])
    return _gradient(kernel, tile, y, vectors, coefficients, {"dz_ptr": nhwc(dz)})


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
    # all taps at once: the tile is chosen as for a 1x1 convolution of that many channels on the output's plane
    problem = Problem("wgrad", packed.dtype, n, p, q, columns, k, Conv(1, 1), "identity", "stem")
    tile = chosen_for(problem, packed)
    if tile == REFERENCE:
        return references.stem_wgrad(packed, dy, conv, channels)
    dw = torch.empty((k, conv.r, depth(conv)), dtype=torch.float32, device=dy.device)
    pixels = Pixels.over(n, packed.shape[1:3], (p, q))
    steps, splits = parts_of(ceil_div(pixels.m, tile.k), tile.splits)
    parts = workspace(dw, splits)
    launch(
        "stem.stem_wgrad_kernel", (ceil_div(columns, tile.m) * ceil_div(k, tile.n), splits), tile,
        x_ptr=packed, dy_ptr=nhwc(dy), dw_ptr=Out(parts), **pixels.named(), K=k,
        TAPS=conv.r, DEPTH=depth(conv), STRIDE=conv.stride, PADDING=conv.padding,
        STEPS=steps, PRECISION=precision(packed.dtype), BLOCK_C=tile.m, BLOCK_K=tile.n, BLOCK_P=tile.k,
    )  # fmt: skip
    add_up(parts, dw)
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

    The pool's padding is never the maximum, whichever numbers it reads.

    Args:
        image: as ``ops.image.pack`` takes it; int8 where ``w`` is, unless ``take`` quantizes it.
        w: [K, C, R, S] in fp32, fp16 or bf16, which the image is converted to; or int8.
        bias: fp32 [K]; in int8 in units of the output's scale.
        conv: the window.
        pool: whether there is a max pool.
        scale: only in int8, fp32 [K] and positive: input scale * weight scale / output scale.
        relu: whether there is a ReLU, as there must be in floating point; without one int8 saturates to [-128, 127].
        take: how the image is normalized and quantized while it is packed; None takes it as it is.

    Returns:
        [N, K, P', Q'] in the dtype of ``w``; in int8 round_half_even(conv * scale + bias), saturated.
    """
    layer = Folded(w, bias, scale, relu=relu)
    _require_layer(layer)
    # the window on the image before ``take`` adds the margin, which is padding
    window = conv if take is None else replace(conv, padding=conv.padding + take.margin)
    tile = _fprop_tile(image, w, window, "stem_pool" if pool else "stem_bias_relu", take)
    if tile == REFERENCE:
        image = image if take is None else converted(image, w.dtype, take)
        return references.stem_inference(image, layer, conv, pool=pool)
    packed = pack(image, conv, w.dtype) if take is None else take_image(image, conv, w.dtype, take)
    out = _empty_output(image, w, window)
    if not pool:
        packed_fprop(packed, w, out, conv, tile, bias_epilogue(layer))
        return out
    n, k, p, q = out.shape
    pooled = empty_nhwc(out, n, k, *POOL.output_size(p, q))
    _conv_pool(packed, w, pooled, (p, q), conv, tile, bias_epilogue(layer))
    return pooled


def strip_length(pixels: int, height: int, cols: int, tile: Tile) -> int:
    """Pooled pixels that a row of ``conv_pool_kernel`` walks down: as many as leave work for every processor.

    A power of two, because the loop's length is compiled in.
    """
    programs = ceil_div(pixels, tile.m) * ceil_div(cols, tile.n)
    longest = max(1, min(LONGEST_STRIP, height, programs // PROGRAMS))
    return 1 << (longest.bit_length() - 1)


def _conv_pool(
    packed: Tensor, w: Tensor, out: Tensor, plane: tuple[int, int], conv: Conv, tile: Tile, epilogue: Fused
) -> None:
    """Launch convolution and max pool in one; ``plane`` [P, Q] is the size of the convolution's own output."""
    n, height, width, _ = packed.shape
    k, p, q = out.shape[1:]
    strip = strip_length(n * p * q, p, k, tile)
    strips = ceil_div(p, strip)
    rows = n * strips * q
    launch(
        "stem.conv_pool_kernel", (ceil_div(rows, tile.m) * ceil_div(k, tile.n),), tile,
        x_ptr=packed, w_ptr=pack_weight(w, conv), out_ptr=Out(out), epilogue_args=epilogue.args,
        **Pixels(rows, height, width, *plane).named(), POOLED_H=p, POOLED_W=q, STRIPS=strips,
        COLS=k, COL_STRIDE=conv.r * depth(conv), TAP_STRIDE=depth(conv),
        STRIP=strip, DEPTH=depth(conv), TAPS=conv.r, STRIDE=conv.stride, PADDING=conv.padding,
        **compiled_for(packed.dtype, tile, epilogue),
    )  # fmt: skip


def _sums(kernel: str, tile: Tile, y: Tensor, vectors: Tensor, gradient: dict[str, Any]) -> Partials:
    y = nhwc(y)
    partials = Partials.empty(y, 2, tile.m)
    sums = {"partials_ptr": Out(partials.rows), "tiles": partials.tiles}
    launch_pass(kernel, y, tile, **gradient, y_ptr=y, vectors_ptr=vectors, **sums)
    return partials


def _gradient(
    kernel: str, tile: Tile, y: Tensor, vectors: Tensor, coefficients: Tensor, gradient: dict[str, Any]
) -> Tensor:
    y = nhwc(y)
    dy = torch.empty_like(y)
    small = {"vectors_ptr": vectors, "coefficients_ptr": coefficients}
    launch_pass(kernel, y, tile, **gradient, y_ptr=y, **small, dy_ptr=Out(dy))
    return dy


def _pooled_gradient(dz: Tensor, index: Tensor, y: Tensor) -> dict[str, Any]:
    """Arguments that say which dz reaches which pixel of ``y``."""
    return {"dz_ptr": nhwc(dz), "index_ptr": nhwc(index), **_planes(y, dz)}


def _planes(y: Tensor, z: Tensor) -> dict[str, int]:
    return {"P": y.shape[2], "Q": y.shape[3], "POOLED_H": z.shape[2], "POOLED_W": z.shape[3]}


def _pool_tile(channels: int) -> Tile:
    """A quarter of a pass's tile: every element of it lives through nine loads, or four pairs of them."""
    tile = pass_tile(channels)
    return replace(tile, m=tile.m // 4)


def _empty_output(image: Tensor, w: Tensor, conv: Conv) -> Tensor:
    n, _, height, width = image.shape
    return empty_nhwc(w, n, w.shape[0], *conv.output_size(height, width))


def _fprop_tile(image: Tensor, w: Tensor, conv: Conv, epilogue: str, take: Take | None = None) -> Chosen:
    if take is None:
        require_packable(image, w.dtype)
    else:
        require_takeable(image, w.dtype, take)
    require_convolution(image, w, conv, name="image")
    n, _, height, width = image.shape
    problem = Problem("fprop", w.dtype, n, height, width, depth(conv), w.shape[0], conv, "identity", epilogue)
    return chosen_for(problem, w)


def _require_layer(layer: Folded) -> None:
    w, scale = layer.w, layer.scale
    if (scale is not None) != (w.dtype == torch.int8):
        raise Unsupported(f"the stem takes a scale with int8 weights and with no others, not {w.dtype}")
    if scale is None and not layer.relu:
        raise Unsupported(
            "the stem goes without its ReLU in int8 alone, which saturates in its place: pass relu=True"
        )
    for name, vector in (("bias", layer.bias), ("scale", scale)):
        if vector is not None:
            require_vector(name, vector, w.shape[0], w)
