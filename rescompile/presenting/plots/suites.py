"""Plots of the suites: the time of an image for every contender of a case, ours marked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from rescompile.measuring.suite_results import Results, Row
from rescompile.presenting.plots.build_report import _INK, _ascii, _axes, _figure
from rescompile.presenting.plots.forms import Plot, colour, plain_log_ticks
from rescompile.wording import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RACED = "engines"
"""The suite whose cases are drawn; the others are tables."""


def suite_plots(results: Results, number: int) -> list[Plot]:
    """One plot for each case of whole networks in the ``number``-th run of a page."""
    made = []
    timed = [row for row in results.rows if row.timing is not None and row.suite == RACED]
    for case, rows in groupby(timed, key=lambda row: row.case):
        made.append(
            Plot(
                f"suite-{number}-{case.replace(' ', '-')}",
                f"{plain(case)}: milliseconds for each image, on a logarithmic axis; ours in blue, shorter is better.",
                partial(_bars, list(rows)),
            )
        )
    return made


def _bars(rows: Sequence[Row]) -> Figure:
    ordered = sorted(rows, key=lambda row: row.ms_per_image or 0.0)
    figure = _figure(70 + 26 * len(ordered))
    axes = _axes(figure)
    axes.grid(visible=False)
    times = [row.ms_per_image or 0.0 for row in ordered]
    for place, (row, time) in enumerate(zip(ordered, times, strict=True)):
        assert row.timing is not None
        own = row.timing
        spans = np.maximum([[own.p50 - own.low], [own.high - own.p50]], 0.0) / row.batch
        axes.barh(
            place, time, height=0.68, color=colour(0) if row.ours else _INK, alpha=1.0 if row.ours else 0.3,
            xerr=spans, error_kw={"ecolor": colour(1), "capsize": 3},
        )  # fmt: skip
        batch = f" (batch {row.batch})" if row.batch > 1 else ""
        axes.text(
            max(time, own.high / row.batch) * 1.06,
            place,
            f"{time:.3g} ms{batch}",
            va="center",
            color=_INK,
            fontsize=9,
        )
    axes.set_yticks(range(len(ordered)), [_ascii(row.contender) for row in ordered])
    axes.invert_yaxis()
    axes.set_xscale("log")
    ends = [row.timing.high / row.batch for row in ordered if row.timing is not None]
    axes.set_xlim(min(times) / 2, max(ends) * 2.5)
    plain_log_ticks(axes, "x")
    axes.set_xlabel("milliseconds for each image")
    return figure
