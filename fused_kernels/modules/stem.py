"""Stems as modules: convolution, batch norm, ReLU and, on large images, max pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from fused_kernels.blocks import torch_operators
from fused_kernels.errors import ShapeError
from fused_kernels.modules.block_forward import folds, window
from fused_kernels.modules.folding import folded, forget
from fused_kernels.modules.norm import install, require_rows, state_of, text_of
from fused_kernels.operands.numeric_types import compute_dtype

if TYPE_CHECKING:
    from typing_extensions import Self


class FusedStem(nn.Module):
    """``conv1`` and ``bn1``, a ReLU, and a 3x3 max pool of stride 2 where ``pool``; ImageNet's 7x7 by default."""

    def __init__(self, channels: int = 64, *, kernel: int = 7, stride: int = 2, pool: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.bn1: nn.Module = nn.BatchNorm2d(channels)
        self.pool = pool

    def train(self, mode: bool = True) -> Self:
        """Set the mode. The next inference folds the weights again, even if nothing seems changed."""
        forget(self.conv1)
        return super().train(mode)

    def forward(self, image: Tensor) -> Tensor:
        """Images [N, 3, H, W] in any memory to activations in NHWC memory."""
        return run_stem(self.conv1, self.bn1, image, pool=self.pool)


def run_stem(conv: nn.Conv2d, norm: nn.Module, image: Tensor, *, pool: bool) -> Tensor:
    """maxpool(relu(norm(conv(image)))) as one operator, in the modules' modes.

    Under autocast the image is converted as it is read, not before.
    """
    if image.ndim != 4 or image.shape[1] != conv.in_channels:
        raise ShapeError(f"expected images [N, {conv.in_channels}, H, W], got {list(image.shape)}")
    dtype, geometry = compute_dtype(image, conv.weight, what="image"), window(conv)
    if folds(image, [(conv, norm)]):
        (weight,), (bias,) = folded([(conv, norm)], dtype)
        return cast(
            Tensor,
            torch_operators.stem_inference(image, weight, bias, geometry.stride, geometry.padding, pool),
        )
    forget(conv)
    p, q = geometry.output_size(image.shape[2], image.shape[3])
    require_rows(norm, image.shape[0] * p * q)
    state = state_of([norm])
    text = text_of(norm, geometry)
    gamma, beta, momentum = state.gammas[0], state.betas[0], state.momenta[0]
    out = torch_operators.stem(image, conv.weight, gamma, beta, state.running, momentum, text, pool, dtype)
    install(state, out)
    return cast(Tensor, out[0])
