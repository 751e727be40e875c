"""The plot of ``rescompile compare``: SQNR by block, one line for each two sides."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rescompile.accuracy.compare import Comparison, ComparisonReport
from rescompile.errors import OutputError, UsageError
from rescompile.files import atomic_write
from rescompile.presenting.plots.build_report import _ascii, _axes, _figure, _finish, _name_positions, _style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
_COLOURS = ("#3b82c4", "#d9663f")
"""Mid-tones that are legible on white and on black."""
_INK = "#010203"
"""The ink of ``plots``: near black in a PNG, the page's own colour in an SVG."""


def check_plot_path(path: Path) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        UsageError: its name ends in neither .svg nor .png.
        OutputError: there is no folder for it.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot {path.name} is neither .svg nor .png; name the file with one of these")
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path.parent} is no folder; make it, or choose another --plot")


def write_plot(report: ComparisonReport, path: Path) -> None:
    """Write the plot to ``path``, as SVG or PNG by its suffix.

    Raises:
        OutputError: the disk is full, or ``path`` may not be written.
    """
    atomic_write(path, png(report) if path.suffix.lower() == ".png" else svg(report).encode())


@_style("comparison by block")
def svg(report: ComparisonReport) -> str:
    """The plot as an ``<svg>`` element on a transparent ground; the same report gives the same text."""
    return _finish(_draw(report))


@_style("comparison by block")
def png(report: ComparisonReport) -> bytes:
    """The plot as a PNG on white."""
    buffer = io.BytesIO()
    _draw(report).savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def _draw(report: ComparisonReport) -> Figure:
    figure = _figure(340)
    axes = _axes(figure)
    # a side that shows its logits alone has one block: it stands where that block stands among the others
    names = [block.block for block in max(report.comparisons, key=lambda c: len(c.blocks)).blocks]
    for comparison, colour in zip(report.comparisons, _COLOURS, strict=False):
        _line(axes, comparison, names, colour)
    axes.axhline(report.comparisons[0].part_db, color=_INK, alpha=0.5, linewidth=1, linestyle="--")
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylabel("SQNR in dB")
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)
    for text in legend.get_texts():
        text.set_color(_INK)
        text.set_parse_math(False)
    _name_positions(axes, names)
    return figure


def _line(axes: Axes, comparison: Comparison, names: Sequence[str], colour: str) -> None:
    """SQNR by block; a larger dot where the sides part."""
    x = [names.index(block.block) for block in comparison.blocks]
    y = [block.sqnr_db for block in comparison.blocks]
    label = _ascii(f"{_short(comparison.a)} against {_short(comparison.b)}")
    axes.plot(x, y, "o-", ms=4, linewidth=1.4, color=colour, label=label)
    if comparison.parts_at is None:
        return
    position = [block.block for block in comparison.blocks].index(comparison.parts_at)
    axes.plot(x[position], y[position], "o", ms=11, mfc="none", mec=colour, mew=1.6)
    axes.annotate(
        _ascii(f"parts at {comparison.parts_at}"),
        (x[position], y[position]),
        xytext=(0, 9),
        textcoords="offset points",
        ha="center",
        color=colour,
        parse_math=False,
    )


def _short(name: str) -> str:
    """A side's name without the folders that lead to it."""
    path, space, what = name.rpartition(" (")
    return f"{Path(path).name}{space}{what}"
