"""Placing intermediate tensors in one arena: lifetimes in, offsets out.

The largest tensor goes first, each to the lowest place that no tensor of an overlapping life occupies (Pisarchyk and
Lee, 2020, "Efficient Memory Management for Deep Neural Net Inference", greedy by size). In a ResNet at most a few
tensors are alive at once, so that is at or near the least possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Life:
    """Life of one tensor: its size, and the first and last launch (both included) that use it."""

    bytes: int
    first: int
    last: int

    def overlaps(self, other: Life) -> bool:
        """Whether both are alive at some launch."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Placement:
    """Offsets in the order of the tensors, and the memory that they need."""

    offsets: tuple[int, ...]
    arena_bytes: int
    live_bytes: int
    """The largest sum of sizes of the tensors alive at one launch: a lower bound of every arena."""


def place(lives: Sequence[Life], *, alignment: int) -> Placement:
    """Offsets that are multiples of ``alignment``, such that no two tensors alive at one time share a byte."""
    offsets: dict[int, int] = {}
    for index in sorted(range(len(lives)), key=lambda i: (-lives[i].bytes, lives[i].first)):
        life = lives[index]
        taken = sorted(
            (offsets[other], offsets[other] + lives[other].bytes)
            for other in offsets
            if life.overlaps(lives[other])
        )
        offsets[index] = _lowest(life.bytes, taken, alignment)
    arena = max((offsets[index] + life.bytes for index, life in enumerate(lives)), default=0)
    return Placement(tuple(offsets[index] for index in range(len(lives))), arena, live_bytes(lives))


def live_bytes(lives: Sequence[Life]) -> int:
    """The largest sum of sizes over all launches."""
    return max(
        (
            sum(life.bytes for life in lives if life.first <= now <= life.last)
            for now in {x.first for x in lives}
        ),
        default=0,
    )


def _lowest(size: int, taken: Sequence[tuple[int, int]], alignment: int) -> int:
    """The lowest aligned offset with ``size`` free bytes; ``taken`` are ranges, sorted."""
    offset = 0
    for begin, end in taken:
        if offset + size <= begin:
            break
        offset = max(offset, -(-end // alignment) * alignment)
    return offset
