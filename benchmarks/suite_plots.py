"""Plots of the suites: the time per image of every contender of a case, ours marked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

from benchmarks.suite_results import Results, Row
from rescompile.presenting.plots.bench import spans
from rescompile.presenting.plots.figure import INK, ascii_only, colour, log_axis
from rescompile.presenting.plots.plot import Plot
from rescompile.wording import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RACED = "engines"
"""The suite whose cases are drawn; the others are tables."""


def suite_plots(results: Results, number: int = 1) -> dict[str, Plot]:
    """One plot for each case of whole networks, by case, in the ``number``-th run of a page."""
    timed = [row for row in results.rows if row.timing is not None and row.suite == RACED]
    return {
        case: Plot(
            f"suite-{number}-{case.replace(' ', '-')}",
            f"{plain(case)}: milliseconds per image, on a logarithmic axis. Ours are blue; shorter is better.",
            partial(_draw, rows),
            height=70 + 26 * len(rows),
        )
        for case, group in groupby(timed, key=lambda row: row.case)
        for rows in [list(group)]
    }


def _draw(rows: Sequence[Row], axes: Axes) -> None:
    ordered = sorted(rows, key=lambda row: row.ms_per_image or 0.0)
    axes.grid(visible=False)
    times, ends = [], []
    for place, row in enumerate(ordered):
        own = row.timing
        assert own is not None
        time, low, high = (value / row.batch for value in (own.p50, own.low, own.high))
        times.append(time)
        ends.append(high)
        axes.barh(
            place, time, height=0.68, color=colour(0) if row.ours else INK, alpha=1.0 if row.ours else 0.3,
            xerr=spans([time], [low], [high]), error_kw={"ecolor": colour(1), "capsize": 3},
        )  # fmt: skip
        batch = f" (batch {row.batch})" if row.batch > 1 else ""
        said = f"{time:.3g} ms{batch}"
        axes.text(max(time, high) * 1.06, place, said, va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(ordered)), [ascii_only(row.contender) for row in ordered])
    axes.invert_yaxis()
    axes.set_xlim(min(times) / 2, max(ends) * 2.5)
    log_axis(axes, "x")
    axes.set_xlabel("milliseconds per image")
