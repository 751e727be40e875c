"""Plots of ``rescompile profile``: the roofline with a point for each block, and the blocks of a call in order."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rescompile.measuring.profile import EngineProfile, ProfileReport
from rescompile.presenting.plots.build_report import _INK, _ascii, _axes, _figure
from rescompile.presenting.plots.forms import Plot, colour, legend, plain_log_ticks
from rescompile.wording import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROOM_FOR_NAME = 0.045
"""Share of the longest bar that a block must have to carry its name."""


def profile_plots(report: ProfileReport, number: int) -> list[Plot]:
    """Both plots of the ``number``-th profile of a page."""
    suffix = f"-{number}" if number > 1 else ""
    network, batch = report.engines[0].engine.model, report.batch
    return [
        Plot(
            f"roofline{suffix}",
            f"{network}, batch {batch}: each block's operations a second against its operations by byte, below what "
            "this machine can do (lines). Blocks on the slope are bound by memory.",
            partial(_roofline, report),
        ),
        Plot(
            f"timeline{suffix}",
            f"{network}, batch {batch}: the blocks of one call in the order of execution; what is pale at the end is "
            "spent between layers and outside of them.",
            partial(_timeline, report),
        ),
    ]


def name_of(engine: EngineProfile, report: ProfileReport) -> str:
    """Its precision, with backend and directory where two engines share it."""
    precisions = [other.engine.precision for other in report.engines]
    facts = engine.engine
    alone = precisions.count(facts.precision) == 1
    return _ascii(
        plain(facts.precision if alone else f"{facts.precision} {facts.backend}, {facts.directory}")
    )


def _roofline(report: ProfileReport) -> Figure:
    figure = _figure(380)
    axes = _axes(figure)
    intensities = []
    for index, engine in enumerate(report.engines):
        points = [block for block in engine.blocks if block.ms and block.work.bytes and block.work.ops]
        x = [block.work.ops / block.work.bytes for block in points]
        y = [block.work.ops / block.ms / 1e6 for block in points]
        axes.plot(
            x, y, "o", ms=7, mew=0.8, mec=_INK, alpha=0.85, color=colour(index), label=name_of(engine, report)
        )
        intensities += x
    _roofs(axes, report, intensities)
    axes.set(xscale="log", yscale="log")
    plain_log_ticks(axes, "x")
    plain_log_ticks(axes, "y")
    axes.set(xlabel="operations by byte", ylabel="Gop/s")
    legend(axes, columns=3)
    return figure


def _roofs(axes: Axes, report: ProfileReport, intensities: list[float]) -> None:
    """The machine's limits, each with its name at its right end."""
    rates = report.roofline
    low, high = min(intensities, default=1.0) / 2, max(intensities, default=100.0) * 2
    x = np.geomspace(low, high, 64)
    precisions = {engine.engine.precision for engine in report.engines}
    tops = [("fp32", rates.float_ops_per_second)] * bool(precisions & {"fp32", "fp16"})
    tops += [("int8", rates.int8_ops_per_second)] * ("int8" in precisions)
    for name, top in tops:
        for memory, style in ((rates.memory_bytes_per_second, "-"), (rates.cache_bytes_per_second, "--")):
            axes.plot(x, np.minimum(top, memory * x) / 1e9, style, color=_INK, alpha=0.5, linewidth=1)
        axes.text(high, top / 1e9, f"{name} arithmetic", ha="right", va="bottom", color=_INK, fontsize=9)
    axes.plot([], [], "-", color=_INK, alpha=0.5, label="from memory")
    axes.plot([], [], "--", color=_INK, alpha=0.5, label="from cache")


def _timeline(report: ProfileReport) -> Figure:
    engines = report.engines
    figure = _figure(90 + 46 * len(engines))
    axes = _axes(figure)
    axes.grid(visible=False)
    longest = max(max(engine.wall.p50, engine.layers_ms) for engine in engines)
    for row, engine in enumerate(engines):
        start = 0.0
        for index, block in enumerate(engine.blocks):
            shade = colour(row)
            axes.barh(row, block.ms, left=start, height=0.62, color=shade, alpha=(1.0, 0.72)[index % 2])
            if block.ms > _ROOM_FOR_NAME * longest:
                middle = start + block.ms / 2
                axes.text(
                    middle, row, _ascii(block.block), ha="center", va="center", color="white", fontsize=8,
                    rotation=90 if block.ms < 2 * _ROOM_FOR_NAME * longest else 0, parse_math=False,
                )  # fmt: skip
            start += block.ms
        if engine.wall.p50 > start:
            axes.barh(row, engine.wall.p50 - start, left=start, height=0.62, color=_INK, alpha=0.15)
    axes.set_yticks(range(len(engines)), [name_of(engine, report) for engine in engines])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.02)
    axes.set_xlabel("milliseconds of one call")
    return figure
