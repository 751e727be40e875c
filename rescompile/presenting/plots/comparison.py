"""The plot of ``rescompile compare``: SQNR by block, one line for each two that are compared."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rescompile.accuracy.compare import Comparison, ComparisonReport
from rescompile.presenting.plots.figure import INK, ascii_only, colour, label_positions, legend
from rescompile.presenting.plots.plot import Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def comparison_by_block(report: ComparisonReport) -> Plot:
    """SQNR of each comparison over the blocks, with a ring where the two diverge."""
    return Plot("comparison-by-block", "Signal-to-noise ratio (SQNR) by block.", partial(_draw, report))


def _draw(report: ComparisonReport, axes: Axes) -> None:
    # an engine that shows its logits alone has one block: it stands where that block stands among the others
    names = [block.block for block in max(report.comparisons, key=lambda c: len(c.blocks)).blocks]
    for index, comparison in enumerate(report.comparisons):
        _line(axes, comparison, names, colour(index))
    axes.axhline(report.comparisons[0].part_db, color=INK, alpha=0.5, linewidth=1, linestyle="--")
    axes.set_ylabel("SQNR in dB")
    legend(axes, columns=1)
    label_positions(axes, names)


def _line(axes: Axes, comparison: Comparison, names: Sequence[str], shade: str) -> None:
    x = [names.index(block.block) for block in comparison.blocks]
    y = [block.sqnr_db for block in comparison.blocks]
    label = ascii_only(f"{_short(comparison.a)} against {_short(comparison.b)}")
    axes.plot(x, y, "o-", ms=4, linewidth=1.4, color=shade, label=label)
    if comparison.parts_at is None:
        return
    position = [block.block for block in comparison.blocks].index(comparison.parts_at)
    axes.plot(x[position], y[position], "o", ms=11, mfc="none", mec=shade, mew=1.6)
    axes.annotate(
        ascii_only(f"diverges at {comparison.parts_at}"),
        (x[position], y[position]),
        xytext=(0, 9),
        textcoords="offset points",
        ha="center",
        color=shade,
        parse_math=False,
    )


def _short(name: str) -> str:
    """A name without the folders that lead to it."""
    path, space, part = name.rpartition(" (")
    return f"{Path(path).name}{space}{part}"
