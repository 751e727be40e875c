"""The search for the fewest blocks in FP16 that meet the limits; each choice of blocks is measured at most once.

The blocks are ordered by the damage of their quantization on calibration images (``accuracy.sensitivity``); the
validation images only accept or reject a choice. Restoring the first k blocks of the order gets better with k, nearly
enough for a bisection; then single blocks go back to INT8 where the limits hold without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rescompile.graph.reformats import predicted_reformats
from rescompile.report import FrontierPoint

Choice = frozenset[str]


@dataclass
class Search:
    """The choices that were measured, and how to measure another one."""

    blocks: Sequence[str]
    """All blocks, in the order of execution."""
    measure: Callable[[tuple[str, ...]], FrontierPoint]
    """Takes the blocks that stay in FP16, in the order of execution."""
    points: dict[Choice, FrontierPoint] = field(default_factory=dict)

    def point(self, choice: Choice) -> FrontierPoint:
        """The measurement of ``choice``."""
        if choice not in self.points:
            self.points[choice] = self.measure(tuple(name for name in self.blocks if name in choice))
        return self.points[choice]

    def passes(self, choice: Choice) -> bool:
        """Whether ``choice`` meets every limit."""
        return self.point(choice).passed

    @property
    def frontier(self) -> tuple[FrontierPoint, ...]:
        """Everything that was measured, fewest INT8 blocks first, the better one first where equal."""
        return tuple(sorted(self.points.values(), key=lambda point: (point.int8_blocks, *_worse(point))))


def fewest_fp16_blocks(search: Search, order: Sequence[str]) -> FrontierPoint:
    """A choice that meets the limits and from which no block can go back; the best one where none meets them.

    ``order`` has all blocks, most damage first.
    """
    if search.passes(frozenset()):
        return search.point(frozenset())
    if not search.passes(frozenset(order)):
        return min(search.points.values(), key=_worse)
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if search.passes(frozenset(order[:middle])) else (middle, high)
    return search.point(_put_back(search, order[:high]))


def _put_back(search: Search, chosen: Sequence[str]) -> Choice:
    """``chosen`` without the blocks that can be INT8 after all.

    Blocks whose return adds no boundary between INT8 and FP16 are tried first, and the least damage first.
    """
    kept = frozenset(chosen)
    for adds_boundary in (False, True):
        for block in reversed(chosen):
            without = kept - {block}
            more = predicted_reformats(search.blocks, without) > predicted_reformats(search.blocks, kept)
            if block in kept and more == adds_boundary and search.passes(without):
                kept = without
    return kept


def _worse(point: FrontierPoint) -> tuple[float, float]:
    return -(point.top1_agreement or 0.0), point.relative_rms
