"""The fewest blocks in FP16 that keep the limits: a search over choices, each of which is measured at most once.

The blocks have an order, most damage first (``sensitivity``), which comes from calibration images alone; the images
that judge only accept or reject a choice. Restoring the first k blocks of the order gets better with k, near enough for
a bisection; then single blocks go back to INT8 where the limits are kept without them.
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
    """All, in the order of execution."""
    measure: Callable[[tuple[str, ...]], FrontierPoint]
    """Of blocks in the order of execution."""
    points: dict[Choice, FrontierPoint] = field(default_factory=dict)

    def point(self, choice: Choice) -> FrontierPoint:
        """What ``choice`` gives."""
        if choice not in self.points:
            self.points[choice] = self.measure(tuple(name for name in self.blocks if name in choice))
        return self.points[choice]

    def keeps(self, choice: Choice) -> bool:
        """Whether ``choice`` keeps every limit."""
        return self.point(choice).passed

    @property
    def frontier(self) -> tuple[FrontierPoint, ...]:
        """Everything that was measured, fewest INT8 blocks first, the better one first where equal."""
        return tuple(sorted(self.points.values(), key=lambda point: (point.int8_blocks, *_worse(point))))


def find(search: Search, order: Sequence[str]) -> FrontierPoint:
    """A choice that keeps the limits and of which no block can go back, or the best one where none keeps them.

    ``order`` are all blocks, most damage first.
    """
    if search.keeps(frozenset()):
        return search.point(frozenset())
    if not search.keeps(frozenset(order)):
        return min(search.points.values(), key=_worse)
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if search.keeps(frozenset(order[:middle])) else (middle, high)
    return search.point(_put_back(search, order[:high]))


def _put_back(search: Search, chosen: Sequence[str]) -> Choice:
    """``chosen`` less the blocks that may be INT8 after all.

    Those come first whose return adds no break, and of these the ones with the least damage.
    """
    kept = frozenset(chosen)
    for breaking in (False, True):
        for block in reversed(chosen):
            without = kept - {block}
            breaks = predicted_reformats(search.blocks, without) > predicted_reformats(search.blocks, kept)
            if block in kept and breaks == breaking and search.keeps(without):
                kept = without
    return kept


def _worse(point: FrontierPoint) -> tuple[float, float]:
    return -point.top1_agreement, point.relative_rms
