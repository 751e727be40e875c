"""Residual blocks for inference, with batch norms folded in: only convolutions, which fuse all the rest.

Bottlenecks of a suitable width run as chain kernels: the 3x3, the last 1x1 with the shortcut, and the next block's
first 1x1 in one launch, so that the two narrow activations between them never leave the processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_kernels.blocks.training import padded
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.layout import nhwc
from fused_kernels.ops.chain import Folded, chain, chain_fits
from fused_kernels.ops.inference import conv_bias
from fused_kernels.specification import Block, Chain

_chains: ContextVar[bool] = ContextVar("chain kernels", default=True)


@contextmanager
def without_chains() -> Iterator[None]:
    """Run every convolution as a launch of its own in this context, for comparison."""
    token = _chains.set(False)
    try:
        yield
    finally:
        _chains.reset(token)


@dataclass(frozen=True)
class FoldedBlock:
    """One block with its folded tensors."""

    block: Block
    weights: Sequence[Tensor]
    biases: Sequence[Tensor]

    def conv(self, x: Tensor, index: int, *, relu: bool, residual: Tensor | None = None) -> Tensor:
        """One layer of the block on ``x``."""
        window = self.block.layers[index].conv
        return conv_bias(x, self.weights[index], self.biases[index], window, relu=relu, residual=residual)

    def shortcut(self, x: Tensor) -> Tensor:
        """The tensor that is added to the main path."""
        if self.block.shortcut == "projection":
            return self.conv(x, len(self.block.main), relu=False)
        return x if self.block.shortcut == "identity" else padded(x, self.block)

    def folded(self, index: int) -> Folded:
        """Weights and bias of one layer, for the chain kernel."""
        return Folded(self.weights[index], self.biases[index])

    @property
    def width(self) -> int:
        """Channels of the first convolution."""
        return self.weights[0].shape[0]

    def fits(self, dtype: torch.dtype, next_width: int | None) -> bool:
        """Whether the chain kernel runs this block from its 3x3 on."""
        windows = [layer.conv for layer in self.block.main]
        return (
            _chains.get()
            and len(windows) == 3
            and windows[1] in {Conv(3, 3, 1, 1), Conv(3, 3, 2, 1)}
            and windows[2].pointwise
            and self.weights[1].shape[0] == self.width
            and chain_fits(self.width, dtype, next_width)
        )


def infer(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], specification: Chain) -> Tensor:
    """Run a chain of blocks on ``x`` [N, C, H, W].

    Args:
        x: input of the first block.
        weights: folded weights [K, C, R, S] in the dtype of ``x``, in the order of ``Chain.layers``.
        biases: fp32 [K], in the same order.
        specification: the blocks; flags of batch norms do not matter here.
    """
    blocks, begin = [], 0
    for block in specification.blocks:
        end = begin + len(block.layers)
        blocks.append(FoldedBlock(block, weights[begin:end], biases[begin:end]))
        begin = end
    first: Tensor | None = (
        None  # output of the block's first convolution, if the chain before has computed it
    )
    for index, folded in enumerate(blocks):
        following = _following(blocks, index, x.dtype)
        next_width = None if following is None else following.width
        x = nhwc(x)
        if folded.fits(x.dtype, next_width):
            y = folded.conv(x, 0, relu=True) if first is None else first
            conv1 = None if following is None else following.folded(0)
            stride = folded.block.main[1].conv.stride
            x, first = chain(y, folded.folded(1), folded.folded(2), folded.shortcut(x), conv1, stride=stride)
        else:
            x, first = _unchained(x, folded), None
    return x


def _following(blocks: Sequence[FoldedBlock], index: int, dtype: torch.dtype) -> FoldedBlock | None:
    """The next block, if the chain of this one may run its first convolution."""
    if index + 1 == len(blocks):
        return None
    following = blocks[index + 1]
    fits = following.block.main[0].conv.pointwise and following.fits(dtype, None)
    return following if fits and blocks[index].fits(dtype, following.width) else None


def _unchained(x: Tensor, folded: FoldedBlock) -> Tensor:
    last = len(folded.block.main) - 1
    y = x
    for index in range(last):
        y = folded.conv(y, index, relu=True)
    return folded.conv(y, last, relu=True, residual=folded.shortcut(x))
