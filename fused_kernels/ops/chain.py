"""The chain for inference: a bottleneck's 3x3, its last 1x1 with the shortcut, and the next block's first 1x1.

    h    = relu(conv2(x))                  3x3, stride 1 or 2
    z    = relu(conv3(h) + residual)       1x1; the block's output
    next = relu(conv1(z))                  1x1; where the next block's chain starts

In int8 each ReLU may be missing: saturation at -128 takes its place (``Folded.relu``).

The chain is one kernel, ``kernels/chain.py``; a stage of bottlenecks is one chain for each block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_kernels.candidates import fit
from fused_kernels.choice import REFERENCE, chosen_for
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.launch import Functor, Out, launch
from fused_kernels.operands.arguments import Pixels
from fused_kernels.operands.folded import Folded
from fused_kernels.operands.geometry import Conv, ceil_div
from fused_kernels.operands.layout import empty_nhwc, nhwc
from fused_kernels.operands.numeric_types import precision, require_float
from fused_kernels.ops.checks import require_folded, require_residual
from fused_kernels.ops.products import accumulator
from fused_kernels.problem import Problem
from fused_kernels.references import chain as references

__all__ = ["Folded", "chain", "chain_fits"]

WIDEST = 256
WIDEST_NEXT = 512
"""Most channels of the 3x3, and of the next 1x1, whose sums a program keeps in registers."""
POINTWISE = Conv(1, 1)


def chain_fits(width: int, dtype: torch.dtype, next_width: int | None = None) -> bool:
    """Whether a chain is worth choosing: its sums stay in registers and its weights do not outweigh its activations.

    256 channels are possible too, but each program would read 2 MB of weights for 64 pixels.

    Args:
        width: channels of the 3x3.
        dtype: of the activations.
        next_width: channels of the next block's first convolution, or None where none follows.
    """
    if dtype not in {torch.float16, torch.bfloat16, torch.int8} or (next_width or 0) > 256:
        return False
    return _power_of_two(width) and _narrowest(dtype) <= width <= 128


def chain(
    x: Tensor,
    conv2: Folded,
    conv3: Folded,
    residual: Tensor,
    conv1: Folded | None = None,
    *,
    stride: int = 1,
    residual_scale: float | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The rest of a bottleneck after its first convolution, and the first convolution of the next one.

    Every value between two convolutions is rounded to the dtype of ``x``, and int8 saturated, exactly as
    ``ops.inference`` stores it.

    Args:
        x: output of the block's first convolution, [N, width, H, W] in fp32, fp16, bf16 or int8; the width is a power
            of two from 16 (int8: 32) to 256.
        conv2: 3x3 with padding 1, [width, width, 3, 3].
        conv3: 1x1, [expanded, width, 1, 1].
        residual: the block's shortcut, [N, expanded, P, Q].
        conv1: of the next block, 1x1, [next, expanded, 1, 1] with up to 512 channels; None where no block follows.
        stride: of ``conv2``, 1 or 2.
        residual_scale: of an int8 residual; see ``ops.inference.conv_int8``.

    Returns:
        z [N, expanded, P, Q], and [N, next, P, Q] or None.
    """
    window = Conv(3, 3, stride, 1)
    _require_chain(x, conv2, conv3, conv1, window)
    n, width, h, wd = x.shape
    expanded, next_width = conv3.w.shape[0], 0 if conv1 is None else conv1.w.shape[0]
    pixels = Pixels.over(n, (h, wd), window.output_size(h, wd))
    require_residual(residual, residual_scale, x, (n, expanded, pixels.p, pixels.q))
    problem = Problem("chain", x.dtype, n, h, wd, width, expanded, window, following=next_width)
    tile = chosen_for(problem, x)
    if tile == REFERENCE:
        return references.chain(
            x, conv2, conv3, residual, conv1, stride=stride, residual_scale=residual_scale
        )
    z = empty_nhwc(x, n, expanded, pixels.p, pixels.q)
    following = None if conv1 is None else empty_nhwc(x, n, next_width, pixels.p, pixels.q)
    launch(
        "chain.chain_kernel", (ceil_div(pixels.m, tile.m),), tile,
        x_ptr=nhwc(x), **_layer("2", conv2), zero_sums_ptr=conv2.zero_sums, **_layer("3", conv3),
        residual_ptr=nhwc(residual), residual_scale=None if residual_scale is None else float(residual_scale),
        z_ptr=Out(z), **_layer("1", conv1), next_ptr=None if following is None else Out(following),
        **pixels.named(), STRIDE=stride, WIDTH=width, EXPANDED=expanded, NEXT=next_width,
        PROLOGUE=Functor("prologues.identity"), PRECISION=precision(x.dtype), ACC=accumulator(x.dtype),
        BLOCK_M=tile.m, BLOCK_Z=tile.n, BLOCK_K=tile.k, FLAT=tile.flat, BLOCK_NEXT=fit(next_width, WIDEST_NEXT),
    )  # fmt: skip
    return z, following


def _layer(name: str, layer: Folded | None) -> dict[str, Any]:
    """The kernel's arguments for the convolution of number ``name``."""
    return {
        f"w{name}_ptr": None if layer is None else nhwc(layer.w),
        f"scale{name}_ptr": None if layer is None else layer.scale,
        f"b{name}_ptr": None if layer is None else layer.bias,
        f"RELU{name}": None if layer is None else layer.relu,
    }


def _power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _narrowest(dtype: torch.dtype) -> int:
    return 32 if dtype == torch.int8 else 16  # a tensor core's shortest reduction


def _require_chain(x: Tensor, conv2: Folded, conv3: Folded, conv1: Folded | None, window: Conv) -> None:
    if x.dtype != torch.int8:
        require_float(x.dtype, what="the chain")
    if x.ndim != 4:
        raise ShapeError(f"x is {tuple(x.shape)}: the chain takes [N, width, H, W]")
    width, expanded = x.shape[1], conv3.w.shape[0]
    if not (_power_of_two(width) and _narrowest(x.dtype) <= width <= WIDEST):
        raise Unsupported(
            f"the chain computes widths that are powers of two from {_narrowest(x.dtype)} to {WIDEST}, not {width}"
        )
    if window.stride not in {1, 2}:
        raise Unsupported(f"the chain's 3x3 has stride 1 or 2, not {window.stride}")
    _require_layer("conv2", conv2, (width, width, 3, 3), window, x)
    _require_layer("conv3", conv3, (expanded, width, 1, 1), POINTWISE, x)
    if conv1 is not None:
        following = conv1.w.shape[0]
        if following > WIDEST_NEXT:
            raise Unsupported(f"the chain's next width is at most {WIDEST_NEXT}, not {following}")
        _require_layer("conv1", conv1, (following, expanded, 1, 1), POINTWISE, x)


def _require_layer(name: str, layer: Folded, shape: tuple[int, ...], conv: Conv, x: Tensor) -> None:
    if layer.w.shape != shape or layer.w.dtype != x.dtype or 0 in shape:
        raise ShapeError(f"{name}.w is {layer.w.dtype} {tuple(layer.w.shape)}, not {x.dtype} {shape}")
    if (layer.scale is not None) != (x.dtype == torch.int8):
        raise ShapeError(f"{name}.scale goes with int8 activations: give it for them and for no others")
    if not layer.relu and layer.scale is None:
        raise Unsupported(f"{name}.relu is off, but only int8 saturates in its place: leave it on")
    require_folded(layer, conv, x, f"{name}.")
