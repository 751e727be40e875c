"""Drawing parts that all plots share: axes in the page's ink, bars, names below an axis, legends, SVG text.

In SVG, the ink becomes ``currentColor``, and the first two colours become ``--plot-main`` and ``--plot-alert`` where a
page defines these.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#3b82c4", "#d9663f", "#3f9b6c", "#a068c8", "#b8892b", "#3fa0a8", "#c2568b", "#7b8794")
"""Mid-tones that are legible on white and on black."""
INK = "#010203"
MAIN, ALERT = PALETTE[:2]
_CSS = {
    INK: "currentColor",
    MAIN: f"var(--plot-main, {MAIN})",
    ALERT: f"var(--plot-alert, {ALERT})",
}
"""Colours that ``to_svg`` replaces by CSS; the ink is not exactly black, so that nothing else has its colour."""

MOST_NAMES = 48
"""Above this many blocks or tensors, single names would overlap; stage names stand instead."""
_INCH = 1 / 72
PAGE_WIDTH = 720
_FONT = 12.5
"""Points; a page shows a figure a little smaller than it was drawn."""
SMALL_FONT = 11.5


@contextmanager
def style(salt: str) -> Iterator[None]:
    """matplotlib's defaults whatever the user's settings say; ``salt`` keeps the ids of one page's plots apart."""
    from matplotlib import style as matplotlib_style

    own = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": _FONT}
    with matplotlib_style.context(["default", own]):
        yield


def new_axes(height: float, width: float) -> tuple[Figure, Axes]:
    """A transparent figure of ``width`` x ``height`` points with open axes in the page's ink."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * _INCH, height * _INCH), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=INK, alpha=0.15, linewidth=0.8)
    axes.tick_params(colors=INK, length=3)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor(INK)
        spine.set_alpha(0.5)
    return figure, axes


def colour(index: int) -> str:
    """The ``index``-th colour of the palette, which begins again after its last."""
    return PALETTE[index % len(PALETTE)]


def ascii_only(name: str) -> str:
    """``name`` in characters that every font has; matplotlib warns about others."""
    return "".join(char if " " <= char <= "~" else "?" for char in name)


def named_bars(
    axes: Axes, values: NDArray[np.float64], names: Sequence[str], marked: int, label: str
) -> None:
    """One bar a name in the order of execution; the ``marked`` one stands out, and ``label`` above says why."""
    width = 0.8 if len(values) <= MOST_NAMES else 1.0
    _bars(axes, values, width, MAIN)
    _bars(axes, values[marked : marked + 1], max(width, len(values) / 250), ALERT, start=marked)
    axes.text(
        0, 1.02, ascii_only(label), transform=axes.transAxes, va="bottom", color=ALERT, parse_math=False
    )
    label_positions(axes, names)


def _bars(axes: Axes, values: NDArray[np.float64], width: float, color: str, *, start: int = 0) -> None:
    """Bars as one path: 600 rectangles of their own would be most of the file."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    left = np.arange(start, start + len(values)) - width / 2
    right, zero = left + width, np.zeros_like(values)
    x = np.stack([left, left, right, right, left], axis=1)
    y = np.stack([zero, values, values, zero, zero], axis=1)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY] * len(values)
    corners = np.stack([x, y], axis=2).reshape(-1, 2)
    axes.add_patch(PathPatch(Path(corners, codes), facecolor=color, linewidth=0))


def label_positions(axes: Axes, names: Sequence[str]) -> None:
    """Limit the x axis to ``names`` and write them below it: each one where there is room, else the stages."""
    axes.set_xlim(-0.5, len(names) - 0.5)
    if len(names) <= MOST_NAMES:
        axes.set_xticks(range(len(names)))
        labels = axes.set_xticklabels([ascii_only(name) for name in names], rotation=90, fontsize=SMALL_FONT)
    else:
        middles, stages, start = [], [], 0
        for stage, members in itertools.groupby(names, key=lambda name: name.split(".")[0]):
            end = start + sum(1 for _ in members)
            if end - start > len(names) / 40:
                middles.append((start + end - 1) / 2)
                stages.append(ascii_only(stage))
                for edge in (start - 0.5, end - 0.5):
                    axes.axvline(edge, color=INK, alpha=0.2, linewidth=0.8)
            start = end
        axes.set_xticks(middles)
        labels = axes.set_xticklabels(stages)
        axes.tick_params(axis="x", length=0)
    for label in labels:
        label.set_parse_math(False)


def legend(axes: Axes, *, columns: int = 2) -> None:
    """A legend above the axes, in the page's ink."""
    made = axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, frameon=False, borderaxespad=0.2
    )
    for text in made.get_texts():
        text.set_color(INK)
        text.set_parse_math(False)


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make one axis logarithmic, with plain numbers at 1, 2, 5 or, over many decades, at 1 only; call it last."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis, (low, high) = (axes.xaxis, axes.get_xlim()) if which == "x" else (axes.yaxis, axes.get_ylim())
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def to_svg(figure: Figure) -> str:
    """The figure as an ``<svg>`` element without prolog, date, ids of groups, fixed size or font of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=160, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    for stand_in, css in _CSS.items():
        text = text.replace(stand_in, css)
    text = re.sub(r"\s*\n\s*", "\n", text)
    return re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", re.sub(r' height="[^"]*pt"', "", text, count=1))
