"""The form of a network's blocks, as data. Needs nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ShortcutOption = Literal["A", "B", "C"]
StrideOn = Literal["3x3", "1x1"]
PLAIN_WIDTH = 64
"""``width_per_group`` of blocks that are neither wide nor grouped."""


@dataclass(frozen=True, kw_only=True)
class BlockForm:
    """Properties that the blocks of one network share."""

    shortcut: ShortcutOption = "B"
    """A pads channels with zeros where a block changes shape; B is a 1x1 convolution and batch norm there, C in every
    block."""
    stride_on: StrideOn = "3x3"
    """Which convolution of a bottleneck has the stride: 3x3 is v1.5 (torchvision), 1x1 the paper's v1."""
    residual: bool = True
    """Whether there are shortcuts at all; without them the network is plain."""
    pre_activation: bool = False
    """Whether batch norm and ReLU stand before each convolution (He et al., 2016) instead of behind it."""
    groups: int = 1
    """Groups of a bottleneck's 3x3 convolution (ResNeXt)."""
    width_per_group: int = PLAIN_WIDTH
    """Channels of one such group in a bottleneck of 64 channels, as torchvision counts them; 128 is twice as wide."""
