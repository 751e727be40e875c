"""A plot as SVG that follows its page and as PNG on white, and what the plots of measurements share."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rescompile.presenting.plots.build_report import _INK, _finish, _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#3b82c4", "#d9663f", "#3f9b6c", "#a068c8", "#b8892b", "#3fa0a8", "#c2568b", "#7b8794")
"""Mid-tones that are legible on white and on black."""


@dataclass(frozen=True)
class Plot:
    """One plot, drawn anew for each form."""

    name: str
    """Of its PNG file, without ending."""
    caption: str
    draw: Callable[[], Figure]

    def svg(self) -> str:
        """An ``<svg>`` element on a transparent ground; the same figures give the same text."""
        with _style(self.name):
            return _finish(self.draw())

    def png(self) -> bytes:
        """A bitmap on white."""
        buffer = io.BytesIO()
        with _style(self.name):
            self.draw().savefig(buffer, format="png", dpi=160, facecolor="white")
        return buffer.getvalue()


def colour(index: int) -> str:
    """The ``index``-th colour; they begin again after the last."""
    return PALETTE[index % len(PALETTE)]


def legend(axes: Axes, *, columns: int = 2) -> None:
    """A legend above the axes, in the page's ink."""
    made = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, borderaxespad=0.2
    )
    for text in made.get_texts():
        text.set_color(_INK)
        text.set_parse_math(False)


def plain_log_ticks(axes: Axes, which: str) -> None:
    """Plain numbers at 1, 2 and 5 on the logarithmic axis ``which``, x or y."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * max(low, 1e-12) else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
