"""Specification of a chain of residual blocks without its tensors: hashable, and a string for ``torch.library``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast

from fused_kernels.operands.geometry import Conv

ShortcutKind = Literal["identity", "projection", "pad"]


@dataclass(frozen=True)
class Layer:
    """One convolution and the batch norm after it."""

    conv: Conv
    eps: float
    batch_statistics: bool
    """Whether to normalize by the batch's statistics; otherwise by the running ones, which are then constants."""
    tracked: bool
    """Whether running statistics exist."""
    updates: bool
    """Whether this pass updates the running statistics."""
    group: str | None = None
    """Name of the process group that shares batch statistics, as in SyncBatchNorm."""
    materialize: bool = False
    """Whether relu(bn(y)) of the layer before is written once, and read by this convolution and its wgrad."""


@dataclass(frozen=True)
class Block:
    """relu(main(x) + shortcut(x)); a ReLU after every layer of ``main`` but the last."""

    main: tuple[Layer, ...]
    shortcut: ShortcutKind = "identity"
    projection: Layer | None = None
    """The 1x1 layer of a projection shortcut."""
    stride: int = 1
    """Stride of the shortcut."""
    pad: tuple[int, int] = (0, 0)
    """Zero channels before and after, for a shortcut of kind pad."""

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The main path's layers, then the projection's."""
        return self.main if self.projection is None else (*self.main, self.projection)


@dataclass(frozen=True)
class Chain:
    """Blocks in order."""

    blocks: tuple[Block, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Every layer in the order in which tensors are passed."""
        return tuple(layer for block in self.blocks for layer in block.layers)


def layer_text(conv: Conv, eps: float, flags: str, group: str | None) -> str:
    """One layer, such as ``3,3,1,1,1e-05,btu,``; ``flags`` are the initials of Layer's booleans that are true.

    Modules write these texts themselves, because ``torch.compile`` can trace strings and not dataclasses.
    """
    return f"{conv.r},{conv.s},{conv.stride},{conv.padding},{eps!r},{flags},{group or ''}"


def block_text(layers: list[str], shortcut: str, stride: int, pad: tuple[int, int]) -> str:
    """One block, such as ``<layer>|<layer>/identity,1,0,0``; a projection's layer comes last."""
    return f"{'|'.join(layers)}/{shortcut},{stride},{pad[0]},{pad[1]}"


@lru_cache(maxsize=4096)
def decode(text: str) -> Chain:
    """The chain of blocks whose ``block_text`` are joined by semicolons."""
    return Chain(tuple(_block(block) for block in text.split(";")))


def _block(text: str) -> Block:
    layers_part, shortcut_part = text.rsplit("/", 1)
    layers = tuple(decode_layer(layer) for layer in layers_part.split("|"))
    shortcut, stride, before, after = shortcut_part.split(",")
    projects = shortcut == "projection"
    return Block(
        main=layers[:-1] if projects else layers,
        shortcut=cast(ShortcutKind, shortcut),
        projection=layers[-1] if projects else None,
        stride=int(stride),
        pad=(int(before), int(after)),
    )


@lru_cache(maxsize=4096)
def decode_layer(text: str) -> Layer:
    """The inverse of ``layer_text``."""
    r, s, stride, padding, eps, flags, group = text.split(",", 6)
    conv = Conv(int(r), int(s), int(stride), int(padding))
    return Layer(conv, float(eps), "b" in flags, "t" in flags, "u" in flags, group or None, "m" in flags)
