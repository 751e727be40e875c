"""A chain of residual blocks with batch norms folded in: convolutions with full epilogues, nothing between them.

Bottlenecks whose width fits run as chain kernels: 3x3, 1x1 with the residual, and the next block's first 1x1 in one
launch, so that the two narrow activations between them never leave the processor.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fused_kernels.blocks import padded
from fused_kernels.layout import nhwc
from fused_kernels.ops.inference import conv_bias
from fused_kernels.specification import Block, Chain


def infer(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], chain: Chain) -> Tensor:
    """Run ``chain`` on ``x`` [N, C, H, W].

    Args:
        x: input of the first block.
        weights: folded weights [K, C, R, S] in the dtype of ``x``, in the order of ``chain.layers``.
        biases: fp32 [K], likewise.
        chain: geometry; its batch norms' flags do not matter here.
    """
    begin = 0
    for block in chain.blocks:
        end = begin + len(block.layers)
        x = _block(nhwc(x), weights[begin:end], biases[begin:end], block)
        begin = end
    return x


def _block(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], block: Block) -> Tensor:
    last = len(block.main) - 1
    y = x
    for index in range(last):
        y = conv_bias(y, weights[index], biases[index], block.main[index].conv, relu=True)
    return conv_bias(
        y,
        weights[last],
        biases[last],
        block.main[last].conv,
        relu=True,
        residual=_shortcut(x, weights, biases, block),
    )


def _shortcut(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], block: Block) -> Tensor:
    if block.projection is not None:
        return conv_bias(x, weights[-1], biases[-1], block.projection.conv, relu=False)
    return x if block.shortcut == "identity" else padded(x, block)
