"""The forward pass of fused blocks: training, frozen statistics or folded inference, as the modules' modes say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from fused_kernels.blocks.torch_operators import residual_blocks, residual_blocks_inference
from fused_kernels.errors import ShapeError
from fused_kernels.launch import trains_plainly
from fused_kernels.modules.folding import folded, forget
from fused_kernels.modules.norm import install, require_rows, state_of, text_of, uses_batch_statistics
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.numeric_types import compute_dtype
from fused_kernels.specification import block_text

Pair = tuple[nn.Conv2d, nn.Module]
"""A convolution and the batch norm after it."""


class Layers(Protocol):
    """Methods of ``FusedBlock``, documented there, that this module needs."""

    def main(self) -> list[Pair]: ...  # noqa: D102

    def layers(self) -> list[Pair]: ...  # noqa: D102

    downsample: nn.Module | None
    materialize: bool

    def shortcut_kind(self) -> tuple[str, int, tuple[int, int]]: ...  # noqa: D102


def run(blocks: Sequence[Layers], x: Tensor) -> Tensor:
    """Run ``blocks`` in order on ``x`` [N, C, H, W], as one operator."""
    pairs = [pair for block in blocks for pair in block.layers()]
    if folds(x, pairs):
        x = prepared(x, pairs[0][0])
        weights, biases = folded(pairs, x.dtype)
        return cast(Tensor, residual_blocks_inference(x, weights, biases, _text_of(blocks)))
    forget(*(conv for conv, _ in pairs))
    if trains_plainly(x.device):
        _check_shape(x, pairs[0][0])
        return _run_plainly(blocks, x)
    x = prepared(x, pairs[0][0])
    _require_rows(blocks, x)
    state = state_of([norm for _, norm in pairs])
    weights = [conv.weight for conv, _ in pairs]
    wants_gradient = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (x, *weights, *state.gammas, *state.betas)
    )
    out = residual_blocks(
        x,
        weights,
        state.gammas,
        state.betas,
        state.running,
        state.momenta,
        _text_of(blocks),
        wants_gradient,
    )
    install(state, out)
    return cast(Tensor, out[0])


def prepared(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """``x`` in autocast's dtype if autocast is on; otherwise it must be in the weights' dtype."""
    _check_shape(x, conv)
    return x.to(compute_dtype(x, conv.weight, what="input"))


def _check_shape(x: Tensor, conv: nn.Conv2d) -> None:
    if x.ndim != 4 or x.shape[1] != conv.in_channels:
        raise ShapeError(f"expected an input [N, {conv.in_channels}, H, W], got {list(x.shape)}")


def _run_plainly(blocks: Sequence[Layers], x: Tensor) -> Tensor:
    """The blocks as their modules compute them one by one, with hooks and in the memory format of ``x``."""
    for block in blocks:
        out, main = x, block.main()
        for conv, norm in main:
            out = norm(conv(out))
            if norm is not main[-1][1] and not any(isinstance(child, nn.ReLU) for child in norm.children()):
                out = torch.relu_(out)
        skip = x if block.downsample is None else block.downsample(x)
        x = torch.relu_(out.add_(skip))
    return x


def folds(x: Tensor, pairs: Sequence[Pair]) -> bool:
    """Whether batch norms may be folded into the weights: their statistics are constants and no gradient is wanted."""
    if any(uses_batch_statistics(norm) for _, norm in pairs):
        return False
    if not torch.is_grad_enabled():
        return True
    parameters = (parameter for conv, norm in pairs for parameter in (*conv.parameters(), *norm.parameters()))
    return not x.requires_grad and not any(parameter.requires_grad for parameter in parameters)


def window(conv: nn.Conv2d) -> Conv:
    """The geometry of a convolution that ``fuse`` accepted: one stride and one numeric padding."""
    padding = conv.padding[0]
    assert isinstance(padding, int)
    return Conv(conv.kernel_size[0], conv.kernel_size[1], conv.stride[0], padding)


def _text_of(blocks: Sequence[Layers]) -> str:
    return ";".join(_text(block) for block in blocks)


def _text(block: Layers) -> str:
    layers = []
    for index, (conv, norm) in enumerate(block.layers()):
        geometry = window(conv)
        follows = 0 < index < len(block.main()) and geometry.r * geometry.s > 1
        layers.append(text_of(norm, geometry, materialize=block.materialize and follows))
    kind, stride, pad = block.shortcut_kind()
    return block_text(layers, kind, stride, pad)


def _require_rows(blocks: Sequence[Layers], x: Tensor) -> None:
    n, _, h, w = x.shape
    for block in blocks:
        for conv, norm in block.main():
            h, w = window(conv).output_size(h, w)
            require_rows(norm, n * h * w)
