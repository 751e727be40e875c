"""Residual blocks for training, forward and backward, in few passes over memory. Derivation: docs/math/block.md.

Forward, one block with layers 1 … L:
    y_1 = conv_1(x)                          + moments of y_1
    y_l = conv_l(relu(bn_{l-1}(y_{l-1})))    + moments of y_l; the activation lives in registers only
    d   = conv_d(x)                          + moments of d, for a projection
    z   = relu(bn_L(y_L) + shortcut)         one pass; z is the next block's x

Backward, from g_L = dz where z > 0 and its sums:
    dy_l    = a_l * g_l + b_l * (y_l - mean_l) + c_l
    dw_l    = wgrad(relu(bn_{l-1}(y_{l-1})), dy_l)
    g_{l-1} = dgrad(dy_l) where relu(bn_{l-1}) is open    + the sums for bn_{l-1}
    g_L of the block before = (dgrad(dy_1) + shortcut gradient) where x > 0    + the sums for its bn_L and bn_d

``torch_operators`` makes one differentiable operator of these functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from fused_kernels.blocks.batch_norm import Affine, Normalized, norm_gradient, normalize
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.layout import nhwc
from fused_kernels.operands.partials import Partials
from fused_kernels.ops import convolution, passes, statistics
from fused_kernels.specification import Block, Chain, Layer


@dataclass(frozen=True)
class LayerTensors:
    """Tensors of one layer: the weight [K, C, R, S] in the activations' dtype, and its batch norm's own."""

    weight: Tensor
    affine: Affine


@dataclass(frozen=True)
class SavedLayer:
    """Tensors of one layer that the backward pass needs."""

    y: Tensor
    """The convolution's output, before its batch norm."""
    vectors: Tensor
    total: Tensor | None


@dataclass(frozen=True)
class SavedBlock:
    """Tensors of one block that the backward pass needs; its input is the chain's input or the ``z`` before."""

    main: tuple[SavedLayer, ...]
    projection: SavedLayer | None
    z: Tensor


@dataclass(frozen=True)
class LayerGradients:
    """Gradients of one layer: dw fp32 [K, C, R, S] or None where it is not asked for, dgamma and dbeta fp32 [C]."""

    dw: Tensor | None
    dgamma: Tensor
    dbeta: Tensor


def forward(x: Tensor, layers: Sequence[LayerTensors], chain: Chain) -> tuple[list[SavedBlock], list[Tensor]]:
    """Run ``chain`` on ``x`` [N, C, H, W].

    Args:
        x: input of the first block, fp32, fp16 or bf16.
        layers: tensors in the order of ``chain.layers``.
        chain: what to compute.

    Returns:
        every block's saved tensors (the last ``z`` is the result), and the next running statistics [2, C] of each
        layer that updates them, in order.
    """
    tensors = iter(layers)
    saved: list[SavedBlock] = []
    running: list[Tensor] = []
    for block in chain.blocks:
        saved.append(_forward_block(nhwc(x), block, tensors, running))
        x = saved[-1].z
    return saved, running


def _forward_block(
    x: Tensor, block: Block, tensors: Iterator[LayerTensors], running: list[Tensor]
) -> SavedBlock:
    main: list[SavedLayer] = []
    for layer in block.main:
        source, vectors = (main[-1].y, main[-1].vectors) if main else (x, None)
        main.append(_forward_layer(source, vectors, layer, next(tensors), running))
    last, projection = main[-1], None
    if block.projection is not None:
        projection = _forward_layer(x, None, block.projection, next(tensors), running)
        z = passes.join(last.y, last.vectors, projection.y, projection.vectors)
    else:
        z = passes.join(last.y, last.vectors, x if block.shortcut == "identity" else padded(x, block))
    return SavedBlock(tuple(main), projection, z)


def _forward_layer(
    x: Tensor, vectors: Tensor | None, layer: Layer, tensors: LayerTensors, running: list[Tensor]
) -> SavedLayer:
    partials: Partials | None = None
    if layer.batch_statistics:
        y, partials = convolution.conv_moments(x, tensors.weight, layer.conv, vectors)
    else:
        y = convolution.conv_plain(x, tensors.weight, layer.conv, vectors)
    normalized: Normalized = normalize(layer, partials, tensors.affine)
    if normalized.running is not None:
        running.append(normalized.running)
    return SavedLayer(y, normalized.vectors, normalized.total)


def padded(x: Tensor, block: Block) -> Tensor:
    """The parameter-free shortcut of CIFAR networks: every ``stride``-th pixel, between zero channels."""
    return nhwc(F.pad(x[:, :, :: block.stride, :: block.stride], (0, 0, 0, 0, *block.pad)))


@dataclass(frozen=True)
class GradientRequest:
    """The gradients to compute."""

    dx: bool
    dw: tuple[bool, ...]
    """For each layer, in the order of ``Chain.layers``."""


def backward(
    dz: Tensor,
    x: Tensor,
    weights: Sequence[Tensor],
    saved: Sequence[SavedBlock],
    chain: Chain,
    request: GradientRequest,
) -> tuple[Tensor | None, list[LayerGradients]]:
    """Gradients of the chain's input and layers, from ``dz``, the gradient of the last block's output.

    Returns:
        dx in the shape and dtype of ``x``, or None where it is not requested; the layers' gradients, in order.
    """
    last = saved[-1]
    g, partials = passes.entry(dz.to(last.z.dtype), last.z, *_join_operands(last))
    gradients: list[LayerGradients] = []
    dx: Tensor | None = None
    end = len(weights)
    for index in reversed(range(len(saved))):
        block = chain.blocks[index]
        own = slice(end - len(block.layers), end)
        source = saved[index - 1].z if index else nhwc(x)
        dy, shortcut, found = _block_backward(
            block, source, weights[own], saved[index], request.dw[own], g, partials
        )
        gradients[:0] = found
        first, conv = weights[own.start], block.main[0].conv
        if index:
            before = saved[index - 1]
            end_of_before = (before.z, *_join_operands(before))
            g, partials = convolution.dgrad_block(dy, first, conv, shortcut, block.stride, *end_of_before)
        elif request.dx:
            dx = convolution.dgrad_shortcut(dy, first, conv, source.shape, shortcut, block.stride)
        end = own.start
    return dx, gradients


def _join_operands(saved: SavedBlock) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    last, projection = saved.main[-1], saved.projection
    if projection is None:
        return last.y, last.vectors, None, None
    return last.y, last.vectors, projection.y, projection.vectors


def _block_backward(
    block: Block,
    x: Tensor,
    weights: Sequence[Tensor],
    saved: SavedBlock,
    wanted: Sequence[bool],
    g: Tensor,
    partials: Partials,
) -> tuple[Tensor, Tensor, list[LayerGradients]]:
    """One block's backward pass, from g of its last layer.

    Returns:
        dy of its first layer; the gradient that the shortcut carries to every ``stride``-th pixel of x; and the
        gradients of the layers, in order.
    """
    found: dict[int, LayerGradients] = {}

    def layer_backward(
        index: int, own: SavedLayer, below: SavedLayer | None, g: Tensor, sum_g: Tensor, sum_gy: Tensor
    ) -> Tensor:
        """dy of one layer, which reads the activation of the layer ``below``, or x."""
        layer = block.layers[index]
        norm = norm_gradient(layer, own.y, own.vectors, own.total, sum_g, sum_gy)
        dy = passes.bn_backward(g, own.y, own.vectors, norm.coefficients)
        source, vectors = (x, None) if below is None else (below.y, below.vectors)
        dw = convolution.wgrad(source, dy, layer.conv, vectors) if wanted[index] else None
        found[index] = LayerGradients(dw, norm.dgamma, norm.dbeta)
        return dy

    totals, shortcut = statistics.sums(partials), g
    if block.shortcut == "pad":
        shortcut = nhwc(g[:, block.pad[0] : g.shape[1] - block.pad[1]])
    elif saved.projection is not None:
        index = len(block.main)
        dy = layer_backward(index, saved.projection, None, g, totals[0], totals[2])
        # a 1x1 projection of stride t touches every t-th pixel: its dgrad is dense on those alone
        n, _, p, q = dy.shape
        size = (n, x.shape[1], p, q)
        shortcut = convolution.dgrad_shortcut(dy, weights[index], Conv(1, 1), size, None)
    for index in reversed(range(1, len(block.main))):
        below = saved.main[index - 1]
        dy = layer_backward(index, saved.main[index], below, g, totals[0], totals[1])
        conv = block.main[index].conv
        g, partials = convolution.dgrad_drelu(dy, weights[index], conv, below.y, below.vectors)
        totals = statistics.sums(partials)
    dy = layer_backward(0, saved.main[0], None, g, totals[0], totals[1])
    return dy, shortcut, [found[index] for index in range(len(weights))]
