"""A stage: fused blocks in sequence, computed by one operator.

Between two blocks the gradient of one's input is the gradient of the other's output. Only an operator that sees both
can apply the ReLU mask and take the batch norm's sums in the epilogue that writes it, so a stage saves one pass over
the widest activation for each of its blocks but the last.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from fused_kernels.modules.block import FusedBlock
from fused_kernels.modules.block_forward import run


class FusedStage(nn.Sequential):
    """``nn.Sequential`` of ``FusedBlock``: same children, same state_dict."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, K, P, Q], in NHWC memory; one block after the other where a block has hooks to call."""
        blocks = [cast(FusedBlock, block) for block in self]
        if any(map(_has_hooks, blocks)):
            for block in blocks:
                x = block(x)
            return x
        return run(blocks, x) if blocks else x


def _has_hooks(block: nn.Module) -> bool:
    return bool(
        block._forward_hooks or block._forward_pre_hooks or block._backward_hooks or block._backward_pre_hooks
    )
