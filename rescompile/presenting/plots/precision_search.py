"""The search for blocks that must stay in FP16: agreement against the number of blocks in INT8."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rescompile.presenting.plots.figure import ALERT, INK, MAIN, legend
from rescompile.presenting.plots.plot import Plot
from rescompile.report import FrontierPoint
from rescompile.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_LABELS = 12
"""Points that are labelled with their reformats; the labels of more would overlap."""


def precision_search(points: Sequence[FrontierPoint]) -> Plot:
    """One dot for each choice of blocks, labelled with its reformats; hollow where a limit is missed."""
    return Plot(
        "precision-search",
        "Every choice of blocks that was measured on the validation images. A reformat is a kernel that only converts "
        "an activation between INT8 and floating point.",
        partial(_draw, points),
    )


def _draw(points: Sequence[FrontierPoint], axes: Axes) -> None:
    # outputs that decide nothing have an error alone
    height = {id(point): 100 * (1 - point.relative_rms if point.top1_agreement is None else point.top1_agreement)
              for point in points}  # fmt: skip
    for passed, colour, label in ((True, MAIN, "within the limits"), (False, ALERT, "misses a limit")):
        chosen = [point for point in points if point.passed == passed]
        x, y = [point.int8_blocks for point in chosen], [height[id(point)] for point in chosen]
        axes.plot(x, y, "o", ms=7, mfc=colour if passed else "none", mec=colour, mew=1.6, label=label)
    for point in points if len(points) <= _MOST_LABELS else ():
        axes.annotate(
            counted(point.reformats, "reformat"),
            (point.int8_blocks, height[id(point)]),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
        )
    axes.margins(0.08, 0.15)
    axes.set(xlabel="blocks in INT8", ylabel="agreement with fp32 in %")
    if points and points[0].top1_agreement is None:
        axes.set_ylabel("1 - relative RMS in %")
    axes.locator_params(axis="x", integer=True)
    legend(axes)
