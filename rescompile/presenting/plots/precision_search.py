"""The search for blocks that must stay in FP16: agreement against the number of blocks in INT8."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rescompile.presenting.plots.figure import ALERT, INK, MAIN, SMALL_FONT, legend
from rescompile.presenting.plots.plot import Plot
from rescompile.report import FrontierPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LABELS = 12
"""Points that are labelled with their reformats; the labels of more would overlap."""


def precision_search(points: Sequence[FrontierPoint]) -> Plot:
    """One dot for each choice of blocks, labelled with its reformats; hollow where a limit is missed."""
    return Plot(
        "precision-search",
        "Every choice of blocks that was measured on the validation images, with its number of reformats. A reformat "
        "is a kernel that only converts an activation between INT8 and floating point.",
        partial(_draw, points),
    )


def _labelled(points: Sequence[FrontierPoint], height: dict[int, float]) -> list[FrontierPoint]:
    """The points whose labels have room: not those close to one that is labelled already."""
    span = max(height.values()) - min(height.values()) or 1.0
    width = max(point.int8_blocks for point in points) or 1
    chosen: list[FrontierPoint] = []
    for point in points if len(points) <= _MOST_LABELS else ():
        near = (
            abs(point.int8_blocks - other.int8_blocks) < 0.04 * width
            and abs(height[id(point)] - height[id(other)]) < 0.1 * span
            for other in chosen
        )
        if not any(near):
            chosen.append(point)
    return chosen


def _draw(points: Sequence[FrontierPoint], axes: Axes) -> None:
    # outputs that decide nothing have an error alone
    height = {id(point): 100 * (1 - point.relative_rms if point.top1_agreement is None else point.top1_agreement)
              for point in points}  # fmt: skip
    for passed, colour, label in ((True, MAIN, "within the limits"), (False, ALERT, "misses a limit")):
        chosen = [point for point in points if point.passed == passed]
        x, y = [point.int8_blocks for point in chosen], [height[id(point)] for point in chosen]
        axes.plot(
            x, y, "o", ms=7, mfc=colour if passed else "none", mec=colour, mew=1.6, label=label, clip_on=False
        )
    axes.margins(0.08, 0.15)
    low, high = axes.get_ylim()
    top = min(100.0, high)
    axes.set_ylim(max(0.0, low), top)
    for point in _labelled(points, height):
        axes.annotate(
            f"{point.reformats}",
            (point.int8_blocks, height[id(point)]),
            xytext=(0, -18 if height[id(point)] > top - 0.1 * (top - low) else 8),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=SMALL_FONT,
        )
    axes.set(xlabel="blocks in INT8", ylabel="agreement with fp32 in %")
    if points and points[0].top1_agreement is None:
        axes.set_ylabel("1 - relative RMS in %")
    axes.locator_params(axis="x", integer=True)
    legend(axes)
