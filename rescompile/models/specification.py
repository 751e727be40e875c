"""The description of one network: depth, stages and options, as data. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from calibration.preprocess import CIFAR, IMAGENET, Preprocess
from rescompile.models.form import PLAIN_WIDTH, BlockForm

Family = Literal["imagenet", "cifar"]
BlockKind = Literal["basic", "bottleneck"]


@dataclass(frozen=True, kw_only=True)
class ModelSpec(BlockForm):
    """One network, without its number of classes."""

    name: str
    depth: int
    family: Family
    block: BlockKind
    stages: tuple[int, ...]
    """Blocks per stage."""
    widen: int = 1
    """Channels of the stages over the usual ones (wide ResNets)."""
    image_size: int
    """Side of the square input in pixels."""
    shortcut_asked: bool = field(default=False, compare=False)
    """Whether the user chose ``shortcut``; otherwise a checkpoint may decide."""

    @property
    def residual_adds(self) -> int:
        """Number of residual additions: one per block, none in a plain network."""
        return sum(self.stages) if self.residual else 0

    @property
    def is_usual(self) -> bool:
        """Whether the blocks are neither wide nor grouped."""
        return (self.groups, self.width_per_group, self.widen) == (1, PLAIN_WIDTH, 1)

    @property
    def visible(self) -> tuple[object, ...]:
        """The properties of a network that its weights show, without the shortcut option."""
        return (
            self.family, self.block, self.stages, self.pre_activation, self.widen, self.groups, self.width_per_group
        )  # fmt: skip

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of the family's data set, used unless the user gives another."""
        return IMAGENET if self.family == "imagenet" else CIFAR

    @property
    def default_classes(self) -> int:
        """Classes of the family's data set."""
        return 1000 if self.family == "imagenet" else 10
