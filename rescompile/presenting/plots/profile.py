"""Plots of ``rescompile profile``: the roofline with a point for each block, and the blocks of a call in order."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rescompile.measuring.profile_report import EngineProfile, ProfileReport
from rescompile.presenting.plots.figure import INK, SMALL_FONT, ascii_only, colour, legend, log_axis
from rescompile.presenting.plots.plot import Plot
from rescompile.wording import counted, listing, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ABOVE = 0.95
"""A block in less than this share of its least time lies visibly above the machine's lines."""
_ROOM_FOR_NAME = 0.045
"""Share of the longest bar that a block must have to carry its name."""


def profile_plots(report: ProfileReport, number: int = 1) -> list[Plot]:
    """Both plots of the ``number``-th profile of a page."""
    suffix = f"-{number}" if number > 1 else ""
    subject = f"{report.engines[0].engine.model}, batch {report.batch}"
    return [
        Plot(
            f"roofline{suffix}",
            f"{subject}: operations per second of each block against its operations per byte. The lines are this "
            "machine's measured limits; blocks on the slope are limited by memory.",
            partial(_draw_roofline, report),
            height=380,
        ),
        Plot(
            f"timeline{suffix}",
            f"{subject}: the blocks of one call in the order of execution. The pale end is time between and outside of "
            "layers.",
            partial(_draw_timeline, report),
            height=90 + 46 * len(report.engines),
        ),
    ]


def name_of(engine: EngineProfile, report: ProfileReport) -> str:
    """Its precision, with backend and directory where two engines share it."""
    precisions = [other.engine.precision for other in report.engines]
    facts = engine.engine
    alone = precisions.count(facts.precision) == 1
    return ascii_only(
        plain(facts.precision if alone else f"{facts.precision} {facts.backend}, {facts.directory}")
    )


def notes_above_the_line(report: ProfileReport) -> list[str]:
    """A note on each engine with blocks that are faster than the limits allow: then the limits are not right."""
    found = []
    for engine in report.engines:
        above = [block.block for block in engine.blocks if block.ms and block.ms < _ABOVE * block.floor_ms]
        if above:
            blocks = f"{counted(len(above), 'block')} above the machine's lines ({listing(above)})"
            found.append(
                f"{name_of(engine, report)}: {blocks}: the limits were measured too low, perhaps under other load, or "
                "the data stayed in a cache; profile again on an idle machine"
            )
    return found


def _draw_roofline(report: ProfileReport, axes: Axes) -> None:
    intensities = []
    for index, engine in enumerate(report.engines):
        points = [block for block in engine.blocks if block.ms and block.work.bytes and block.work.ops]
        x = [block.work.ops / block.work.bytes for block in points]
        y = [block.work.ops / block.ms / 1e6 for block in points]
        name = name_of(engine, report)
        axes.plot(x, y, "o", ms=7, mew=0.8, mec=INK, alpha=0.85, color=colour(index), label=name)
        intensities += x
    _draw_limits(axes, report, intensities)
    log_axis(axes, "x")
    log_axis(axes, "y")
    axes.set(xlabel="operations per byte", ylabel="Gop/s")
    legend(axes, columns=3)


def _draw_limits(axes: Axes, report: ProfileReport, intensities: list[float]) -> None:
    """The machine's limits, each with its name at its right end."""
    rates = report.roofline
    low, high = min(intensities, default=1.0) / 2, max(intensities, default=100.0) * 2
    x = np.geomspace(low, high, 64)
    precisions = {engine.engine.precision for engine in report.engines}
    tops = [("fp32", rates.float_ops_per_second)] * bool(precisions & {"fp32", "fp16"})
    tops += [("int8", rates.int8_ops_per_second)] * ("int8" in precisions)
    if len(tops) == 2 and max(tops[0][1], tops[1][1]) < 1.25 * min(tops[0][1], tops[1][1]):
        tops = [("fp32 and int8", max(tops[0][1], tops[1][1]))]  # two names would be printed over each other
    for name, top in tops:
        for memory, style in ((rates.memory_bytes_per_second, "-"), (rates.cache_bytes_per_second, "--")):
            axes.plot(x, np.minimum(top, memory * x) / 1e9, style, color=INK, alpha=0.5, linewidth=1)
        axes.text(
            high, top / 1e9, f"{name} arithmetic", ha="right", va="bottom", color=INK, fontsize=SMALL_FONT
        )
    axes.plot([], [], "-", color=INK, alpha=0.5, label="from memory")
    axes.plot([], [], "--", color=INK, alpha=0.5, label="from cache")


def _draw_timeline(report: ProfileReport, axes: Axes) -> None:
    axes.grid(visible=False)
    engines = report.engines
    longest = max(max(engine.wall.p50, engine.layers_ms) for engine in engines)
    for row, engine in enumerate(engines):
        end = _draw_blocks(axes, row, engine, room=_ROOM_FOR_NAME * longest)
        if engine.wall.p50 > end:
            axes.barh(row, engine.wall.p50 - end, left=end, height=0.62, color=INK, alpha=0.15)
    axes.set_yticks(range(len(engines)), [name_of(engine, report) for engine in engines])
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.02)
    axes.set_xlabel("milliseconds of one call")


def _draw_blocks(axes: Axes, row: int, engine: EngineProfile, *, room: float) -> float:
    """Draw the blocks end to end, with names on those longer than ``room``; returns where the last one ends."""
    start = 0.0
    for index, block in enumerate(engine.blocks):
        axes.barh(row, block.ms, left=start, height=0.62, color=colour(row), alpha=(1.0, 0.72)[index % 2])
        if block.ms > room:
            axes.text(
                start + block.ms / 2,
                row,
                ascii_only(block.block),
                ha="center",
                va="center",
                color="white",
                fontsize=SMALL_FONT,
                rotation=90 if block.ms < 2 * room else 0,
                parse_math=False,
            )
        start += block.ms
    return start
