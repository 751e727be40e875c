"""The parameter-free shortcut of CIFAR networks (option A of the ResNet paper)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Every ``stride``-th pixel, between ``pad_channels`` zero channels before and after."""

    def __init__(self, stride: int, pad_channels: tuple[int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.pad_channels = pad_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, before + C + after, ceil(H / stride), ceil(W / stride)]."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.pad_channels))
