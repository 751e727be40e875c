"""Residual blocks for training, forward and backward, in few passes over memory. Derivation: docs/math/block.md.

Forward, one block with layers 1 … L:
    y_1 = conv_1(x)                          + moments of y_1
    y_l = conv_l(relu(bn_{l-1}(y_{l-1})))    + moments of y_l; the activation lives in registers only, or is written
                                             once where the layer's ``materialize`` asks for it
    d   = conv_d(x)                          + moments of d, for a projection
    z   = relu(bn_L(y_L) + shortcut)         one pass; z is the next block's x

Backward, from g_L = dz where z > 0 and its sums:
    dy_l    = a_l * g_l + b_l * (y_l - mean_l) + c_l
    dw_l    = wgrad(relu(bn_{l-1}(y_{l-1})), dy_l)    in the same pass where l is a 1x1 of few channels
    g_{l-1} = dgrad(dy_l) where relu(bn_{l-1}) is open    + the sums for bn_{l-1}
    g_L of the block before = (dgrad(dy_1) + shortcut gradient) where x > 0    + the sums for its bn_L and bn_d

``torch_operators`` makes one differentiable operator of these functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from fused_kernels.blocks.batch_norm import Affine, Norm, norm_gradients, normalize
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.layout import nhwc
from fused_kernels.operands.partials import Partials
from fused_kernels.ops import convolution, passes
from fused_kernels.ops.splits import SplitSum, launch_sum
from fused_kernels.ops.statistics import NormGradient
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
    activation: Tensor | None = None
    """relu(bn(y)), where the next layer has it written."""

    @property
    def operand(self) -> tuple[Tensor, Tensor | None]:
        """What a product of relu(bn(y)) reads: the activation, or y and the vectors of its batch norm."""
        return (self.y, self.vectors) if self.activation is None else (self.activation, None)


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
    for layer, following in zip(block.main, block.main[1:], strict=False):
        (made,) = _normalized([_convolve(*_operand(main, x), layer, next(tensors))], running)
        if following.materialize:
            made = replace(made, activation=passes.activate(made.y, made.vectors))
        main.append(made)
    ends = [_convolve(*_operand(main, x), block.main[-1], next(tensors))]
    if block.projection is not None:
        ends.append(_convolve(x, None, block.projection, next(tensors)))
    last, *rest = _normalized(ends, running)
    main.append(last)
    projection = rest[0] if rest else None
    if projection is not None:
        z = passes.join(last.y, last.vectors, projection.y, projection.vectors)
    else:
        z = passes.join(last.y, last.vectors, x if block.shortcut == "identity" else padded(x, block))
    return SavedBlock(tuple(main), projection, z)


def _operand(main: Sequence[SavedLayer], x: Tensor) -> tuple[Tensor, Tensor | None]:
    """What the layer after ``main`` reads, with the vectors of the batch norm to apply to it."""
    return main[-1].operand if main else (x, None)


def _convolve(x: Tensor, vectors: Tensor | None, layer: Layer, tensors: LayerTensors) -> tuple[Tensor, Norm]:
    """y of one layer, and the batch norm to compute of it."""
    partials: Partials | None = None
    if layer.batch_statistics:
        y, partials = convolution.conv_moments(x, tensors.weight, layer.conv, vectors)
    else:
        y = convolution.conv_plain(x, tensors.weight, layer.conv, vectors)
    return y, Norm(layer, partials, tensors.affine)


def _normalized(convolved: Sequence[tuple[Tensor, Norm]], running: list[Tensor]) -> list[SavedLayer]:
    """One layer, or two that end a block, with their batch norms' vectors; ``running`` gets what follows for each."""
    made = normalize([norm for _, norm in convolved])
    running += [normalized.running for normalized in made if normalized.running is not None]
    return [
        SavedLayer(y, normalized.vectors, normalized.total)
        for (y, _), normalized in zip(convolved, made, strict=True)
    ]


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
    pending: list[SplitSum] = []
    dx: Tensor | None = None
    end = len(weights)
    for index in reversed(range(len(saved))):
        block = chain.blocks[index]
        own = slice(end - len(block.layers), end)
        source = saved[index - 1].z if index else nhwc(x)
        dy, shortcut, found = _block_backward(
            block, source, weights[own], saved[index], request.dw[own], g, partials, pending
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
    for split_sum in pending:
        launch_sum(split_sum)
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
    pending: list[SplitSum],
) -> tuple[Tensor, Tensor, list[LayerGradients]]:
    """One block's backward pass, from g of its last layer.

    ``pending`` are split reductions of gradients returned before or here; each is added up in the next launch of small
    sums, and those that are left by the caller.

    Returns:
        dy of its first layer; the gradient that the shortcut carries to every ``stride``-th pixel of x; and the
        gradients of the layers, in order.
    """
    found: dict[int, LayerGradients] = {}

    def norms_of(partials: Partials, *layers: tuple[Layer, SavedLayer]) -> list[NormGradient]:
        norms = [(layer, own.vectors, own.total) for layer, own in layers]
        made = norm_gradients(partials, norms, tuple(pending))
        pending.clear()
        return made

    def layer_backward(
        index: int, own: SavedLayer, below: SavedLayer | None, g: Tensor, norm: NormGradient
    ) -> Tensor:
        """dy of one layer, which reads the activation of the layer ``below``, or x."""
        conv = block.layers[index].conv
        source, vectors = (x, None) if below is None else below.operand
        upstream = g, own.y, own.vectors, norm.coefficients
        dw: Tensor | None = None
        if wanted[index] and convolution.makes_dy(conv, source.shape[1], source.dtype):
            dw, dy = convolution.wgrad_and_dy(source, *upstream, conv, vectors, pending)
        else:
            dy = passes.bn_backward(*upstream)
            if wanted[index]:
                dw = convolution.wgrad(source, dy, conv, vectors, pending)
        found[index] = LayerGradients(dw, norm.dgamma, norm.dbeta)
        return dy

    shortcut, ends = g, [(block.main[-1], saved.main[-1])]
    if block.projection is not None and saved.projection is not None:
        ends.append((block.projection, saved.projection))
    norm, *rest = norms_of(partials, *ends)
    if block.shortcut == "pad":
        shortcut = nhwc(g[:, block.pad[0] : g.shape[1] - block.pad[1]])
    elif saved.projection is not None:
        index = len(block.main)
        dy = layer_backward(index, saved.projection, None, g, rest[0])
        # a 1x1 projection of stride t touches every t-th pixel: its dgrad is dense on those alone
        n, _, p, q = dy.shape
        size = (n, x.shape[1], p, q)
        shortcut = convolution.dgrad_shortcut(dy, weights[index], Conv(1, 1), size, None)
    for index in reversed(range(1, len(block.main))):
        below = saved.main[index - 1]
        dy = layer_backward(index, saved.main[index], below, g, norm)
        conv = block.main[index].conv
        g, partials = convolution.dgrad_drelu(dy, weights[index], conv, below.y, below.vectors)
        (norm,) = norms_of(partials, (block.main[index - 1], below))
    dy = layer_backward(0, saved.main[0], None, g, norm)
    return dy, shortcut, [found[index] for index in range(len(weights))]
