"""Plots of ``rescompile bench``: throughput by batch size, distribution of latency, accuracy against latency."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from rescompile.measuring.bench import BenchReport
from rescompile.presenting.plots.figure import ascii_only, colour, legend, log_axis
from rescompile.presenting.plots.plot import Plot
from rescompile.wording import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def bench_plots(reports: Sequence[BenchReport]) -> list[Plot]:
    """All plots that ``reports`` allow."""
    if not reports:
        return []
    batches = ", ".join(str(size) for size in sorted({report.latency.batch for report in reports}))
    made = [
        Plot(
            "throughput",
            "Images per second against batch size, with the 95 % interval of the median. Where a line becomes flat, a "
            "larger batch gains nothing.",
            partial(_draw_throughput, reports),
        ),
        Plot(
            "latency",
            f"Share of calls that finished within a given time, batch {batches}. A steep line means steady times; dots "
            "mark p50, p90 and p99.",
            partial(_draw_latency, reports),
        ),
    ]
    if any(value is not None for value in accuracies(reports)):
        caption = f"{_quality(reports)} against the median time of a call: best is the upper left."
        made.append(Plot("accuracy", caption, partial(_draw_accuracy, reports)))
    return made


def labels(reports: Sequence[BenchReport]) -> list[str]:
    """A name for each engine: model, precision and backend, with its directory where two are alike."""
    short = [f"{r.engine.model} {r.engine.precision} {r.engine.backend}" for r in reports]
    return [
        ascii_only(plain(f"{name}, {report.engine.directory}" if short.count(name) > 1 else name))
        for name, report in zip(short, reports, strict=True)
    ]


def measure_of_all(reports: Sequence[BenchReport]) -> Literal["top1", "top1_agreement"]:
    """Top-1 where every engine with a figure has it, else the agreement with fp32: never one beside the other."""
    judged = [report.engine for report in reports if report.engine.top1_agreement is not None]
    return "top1" if judged and all(engine.top1 is not None for engine in judged) else "top1_agreement"


def accuracies(reports: Sequence[BenchReport]) -> list[float | None]:
    """The measure of all for each engine, in percent."""
    found = [getattr(report.engine, measure_of_all(reports)) for report in reports]
    return [None if value is None else 100 * value for value in found]


def spans(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> NDArray[np.float64]:
    """Lengths of error bars around ``values``, at least 0: rounding can put a median outside of its interval."""
    middle = np.asarray(values)
    return np.maximum([middle - low, high - middle], 0.0)


def _quality(reports: Sequence[BenchReport]) -> str:
    return {"top1": "Top-1 accuracy", "top1_agreement": "Agreement with fp32"}[measure_of_all(reports)]


def _draw_throughput(reports: Sequence[BenchReport], axes: Axes) -> None:
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        rates = [result.images_per_second for result in report.batches]
        low = [1e3 * result.batch / result.timing.high for result in report.batches]
        high = [1e3 * result.batch / result.timing.low for result in report.batches]
        axes.errorbar(
            [result.batch for result in report.batches],
            rates,
            yerr=spans(rates, low, high),
            fmt="o-",
            ms=5,
            linewidth=1.6,
            capsize=3,
            color=colour(index),
            label=label,
        )
    axes.set_xscale("log", base=2)
    sizes = sorted({result.batch for report in reports for result in report.batches})
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set(xlabel="batch size", ylabel="images per second")
    legend(axes)


def _draw_latency(reports: Sequence[BenchReport], axes: Axes) -> None:
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        found = report.latency.timing
        shares = np.linspace(0, 100, len(found.samples)) if len(found.samples) > 1 else np.array([100.0])
        axes.plot(found.samples, shares, linewidth=1.6, color=colour(index), label=label)
        axes.plot(
            [found.p50, found.p90, found.p99], [50, 90, 99], "o", ms=6, color=colour(index), clip_on=False
        )
    log_axis(axes, "x")
    axes.set_ylim(0, 100)
    axes.set(xlabel="milliseconds per call", ylabel="% of calls")
    legend(axes)


def _draw_accuracy(reports: Sequence[BenchReport], axes: Axes) -> None:
    values = []
    shown = zip(reports, labels(reports), accuracies(reports), strict=True)
    for index, (report, label, value) in enumerate(shown):
        if value is not None:
            values.append(value)
            found = report.latency.timing
            ends = spans([found.p50], [found.low], [found.high])
            axes.errorbar(
                [found.p50], [value], xerr=ends, fmt="o", ms=8, capsize=3, color=colour(index), label=label,
                clip_on=False,
            )  # fmt: skip
    axes.margins(0.15)
    room = max(0.5, 0.3 * (max(values) - min(values)))
    axes.set_ylim(max(0.0, min(values) - room), min(100.0, max(values) + room))
    log_axis(axes, "x")
    axes.set(xlabel="milliseconds per call (p50)", ylabel=f"{_quality(reports)}, %".lower())
    legend(axes)
