"""Whole blocks and stems as operators of ``torch.library``: differentiable, traceable, one node each in a graph.

The fake kernel of each is the same function: on fake tensors launches are recorded and not run (``launch``). So
``torch.compile``, CUDA graphs, AMP, checkpointing and DDP see ordinary operators, and nothing is traced into them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

from fused_kernels.blocks import inference, training
from fused_kernels.blocks import stem as stem_blocks
from fused_kernels.blocks.batch_norm import Affine
from fused_kernels.blocks.saved_tensors import pack, packed_size, unpack
from fused_kernels.blocks.training import GradientRequest, LayerTensors
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import stem as stem_ops
from fused_kernels.ops.head import pool_fc
from fused_kernels.specification import decode, decode_layer

NAMESPACE = "fused_kernels"


def _operator(function: Callable[..., Any]) -> CustomOpDef:
    """``function`` as an operator of its name, and as its own fake kernel."""
    operator = torch.library.custom_op(f"{NAMESPACE}::{function.__name__}", function, mutates_args=())
    operator.register_fake(function)
    return operator


@_operator
def residual_blocks(
    x: Tensor,
    weights: list[Tensor],
    gammas: list[Tensor],
    betas: list[Tensor],
    running: list[Tensor],
    momenta: list[float],
    chain: str,
    save: bool,
) -> list[Tensor]:
    """A chain of residual blocks.

    Args:
        x: [N, C, H, W], fp32, fp16 or bf16.
        weights: [K, C, R, S] of each layer in the order of ``Chain.layers``; cast to the dtype of ``x``, once.
        gammas: [K] of each layer.
        betas: [K] of each layer.
        running: running mean and variance, [K] each, of each layer that tracks them.
        momenta: weight of the new value in the running statistics, of each layer.
        chain: what to compute, as ``specification.decode`` reads it.
        save: whether to return what backward needs; must be True where gradients are wanted.

    Returns:
        the result [N, K, P, Q], then (if ``save``) the saved tensors in the order of ``saved_tensors.pack`` and the
        weights that had to be cast, then the next running statistics [2, K] of each layer that updates them.
    """
    specification = decode(chain)
    cast = [weight.to(x.dtype) for weight in weights]
    statistics = iter(running)
    layers = []
    for index, layer in enumerate(specification.layers):
        tracked = (next(statistics), next(statistics)) if layer.tracked else None
        affine = Affine(gammas[index], betas[index], tracked, momenta[index])
        layers.append(LayerTensors(cast[index], affine))
    saved, new_running = training.forward(x, layers, specification)
    if not save:
        return [saved[-1].z, *new_running]
    kept = [copy for copy, weight in zip(cast, weights, strict=True) if weight.dtype != x.dtype]
    return [*pack(saved), *kept, *new_running]


@_operator
def residual_blocks_backward(
    dz: Tensor,
    x: Tensor,
    weights: list[Tensor],
    saved: list[Tensor],
    chain: str,
    wants_dx: bool,
    wants_dw: list[bool],
) -> list[Tensor]:
    """Gradients of ``residual_blocks``; ``weights`` are in the dtype of ``x``.

    Returns:
        dx (empty where it is not wanted), then dw (fp32, empty where it is not wanted), dgamma and dbeta of each layer.
    """
    specification = decode(chain)
    request = GradientRequest(wants_dx, tuple(wants_dw))
    dx, layers = training.backward(dz, x, weights, unpack(saved, specification), specification, request)
    flat = [_or_empty(dx, x)]
    for layer in layers:
        flat += [_or_empty(layer.dw, x), layer.dgamma, layer.dbeta]
    return flat


def _or_empty(gradient: Tensor | None, like: Tensor) -> Tensor:
    """The gradient, or the tensor without elements that an operator returns in place of None."""
    return like.new_empty(0) if gradient is None else gradient


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, gammas, betas, running, _, chain, save = inputs
    ctx.set_materialize_grads(False)  # zeros for every saved activation would cost as much memory as they do
    if not save:
        raise RuntimeError(
            "residual_blocks was called with save=False, yet a gradient is asked for: pass save=True"
        )
    ctx.chain = chain
    ctx.layers = len(weights)
    ctx.running = len(running)
    ctx.dtypes = [tensor.dtype for tensor in (*gammas, *betas)]
    ctx.weight_dtypes = [weight.dtype for weight in weights]
    packed = packed_size(decode(chain))
    kept = iter(output[packed:])
    used = [weight if weight.dtype == x.dtype else next(kept) for weight in weights]
    ctx.save_for_backward(x, *used, *output[:packed])


def _backward(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    count, dz = ctx.layers, gradients[0]
    constants = [None] * ctx.running, None, None, None
    if dz is None:
        return None, [None] * count, [None] * count, [None] * count, *constants
    x, *rest = ctx.saved_tensors
    wants_dx, wants_dw = bool(ctx.needs_input_grad[0]), [bool(wanted) for wanted in ctx.needs_input_grad[1]]
    dx, *flat = residual_blocks_backward(dz, x, rest[:count], rest[count:], ctx.chain, wants_dx, wants_dw)
    dw = [
        grad.to(dtype) if wanted else None
        for grad, dtype, wanted in zip(flat[::3], ctx.weight_dtypes, wants_dw, strict=True)
    ]
    vectors = [grad.to(dtype) for grad, dtype in zip((*flat[1::3], *flat[2::3]), ctx.dtypes, strict=True)]
    return dx if wants_dx else None, dw, vectors[:count], vectors[count:], *constants


residual_blocks.register_autograd(_backward, setup_context=_save_for_backward)


@_operator
def residual_blocks_inference(x: Tensor, weights: list[Tensor], biases: list[Tensor], chain: str) -> Tensor:
    """A chain of residual blocks with batch norms folded in; see ``inference.infer``. Not differentiable."""
    return inference.infer(x, weights, biases, decode(chain))


@_operator
def pool_classifier(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Global average pool and classifier: [N, C, H, W] to fp32 logits [N, classes]. Not differentiable."""
    return pool_fc(x, weight, bias)


@_operator
def stem(
    image: Tensor,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    running: list[Tensor],
    momentum: float,
    layer: str,
    pool: bool,
    dtype: torch.dtype,
) -> list[Tensor]:
    """A network's first layers.

    Args:
        image: [N, C, H, W] of 1 to 4 channels, in any memory.
        weight: [K, C, R, S].
        gamma: [K].
        beta: [K].
        running: running mean and variance [K], where they are tracked.
        momentum: weight of the new value in the running statistics.
        layer: ``specification.layer_text``.
        pool: whether a 3x3 max pool of stride 2 and padding 1 follows.
        dtype: fp32, fp16 or bf16, which image and weight are converted to.

    Returns:
        the result, the other tensors of ``SavedStem``, and the next running statistics [2, K] where they are updated.
    """
    pair = (running[0], running[1]) if running else None
    tensors = LayerTensors(weight.to(dtype), Affine(gamma, beta, pair, momentum))
    saved, new_running = stem_blocks.forward(image, tensors, decode_layer(layer), pool=pool)
    return [*saved.tensors(), *([] if new_running is None else [new_running])]


@_operator
def stem_backward(
    dz: Tensor,
    image: Tensor,
    weight: Tensor,
    saved: list[Tensor],
    layer: str,
    pool: bool,
    wants_image: bool,
    wants_dw: bool,
) -> list[Tensor]:
    """Gradients of ``stem``: of the image and weight (empty where not wanted; dw is fp32), gamma and beta."""
    kept = stem_blocks.saved_stem(saved, pool=pool)
    request = GradientRequest(wants_image, (wants_dw,))
    dimage, gradients = stem_blocks.backward(
        dz, image, weight.to(kept.y.dtype), kept, decode_layer(layer), request
    )
    return [_or_empty(dimage, weight), _or_empty(gradients.dw, weight), gradients.dgamma, gradients.dbeta]


def _save_stem(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    image, weight, gamma, beta, running, _, layer, pool, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.layer, ctx.pool, ctx.running = layer, pool, len(running)
    ctx.dtypes = gamma.dtype, beta.dtype
    last = -1 if decode_layer(layer).updates else len(output)
    ctx.save_for_backward(image, weight, *output[:last])


def _stem_backward(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    constants = [None] * ctx.running, None, None, None, None
    dz = gradients[0]
    if dz is None:
        return None, None, None, None, *constants
    image, weight, *saved = ctx.saved_tensors
    wants_image, wants_dw = bool(ctx.needs_input_grad[0]), bool(ctx.needs_input_grad[1])
    dimage, dw, dgamma, dbeta = stem_backward(
        dz, image, weight, saved, ctx.layer, ctx.pool, wants_image, wants_dw
    )
    return (
        dimage if wants_image else None,
        dw.to(weight.dtype) if wants_dw else None,
        dgamma.to(ctx.dtypes[0]),
        dbeta.to(ctx.dtypes[1]),
        *constants,
    )


stem.register_autograd(_stem_backward, setup_context=_save_stem)


@_operator
def stem_inference(
    image: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, pool: bool
) -> Tensor:
    """relu(conv(image) + bias), then max pool if ``pool``; batch norm is folded in. Not differentiable."""
    conv = Conv(weight.shape[2], weight.shape[3], stride, padding)
    return stem_ops.stem_inference(image, weight, bias, conv, pool=pool)
