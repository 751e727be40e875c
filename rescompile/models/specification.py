"""The description of one network: depth, stages and options, as data. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from calibration.preprocess import CIFAR, IMAGENET, Preprocess

Family = Literal["imagenet", "cifar"]
BlockKind = Literal["basic", "bottleneck"]
ShortcutOption = Literal["A", "B"]
StrideOn = Literal["3x3", "1x1"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One network, without its number of classes."""

    name: str
    depth: int
    family: Family
    block: BlockKind
    stages: tuple[int, ...]
    """Blocks per stage."""
    shortcut: ShortcutOption
    """The shortcut where a block changes shape: A pads channels with zeros, B is a 1x1 convolution and batch norm."""
    stride_on: StrideOn = "3x3"
    """Which convolution of a bottleneck has the stride: 3x3 is v1.5 (torchvision), 1x1 the paper's v1."""
    image_size: int
    """Side of the square input in pixels."""
    shortcut_asked: bool = field(default=False, compare=False)
    """Whether the user chose ``shortcut``; otherwise a checkpoint may decide."""

    @property
    def residual_adds(self) -> int:
        """Number of residual additions: one per block."""
        return sum(self.stages)

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of the family's data set, used unless the user gives another."""
        return IMAGENET if self.family == "imagenet" else CIFAR

    @property
    def default_classes(self) -> int:
        """Classes of the family's data set."""
        return 1000 if self.family == "imagenet" else 10
