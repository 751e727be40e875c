"""Plots of ``rescompile bench``: throughput against batch, distribution of latency, accuracy against latency."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rescompile.measuring.bench import BenchReport
from rescompile.presenting.plots.build_report import _INK, _ascii, _axes, _figure
from rescompile.presenting.plots.forms import Plot, colour, legend, plain_log_ticks
from rescompile.wording import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def bench_plots(reports: Sequence[BenchReport]) -> list[Plot]:
    """All plots that ``reports``, one or more, allow."""
    made = [
        Plot(
            "throughput",
            "Images a second against the batch size, with the 95 % interval of the median: where a line becomes flat, "
            "a larger batch gains nothing.",
            partial(_throughput, reports),
        ),
        Plot(
            "latency",
            f"Share of calls that took no longer than so many milliseconds, batch {_batches(reports)}: a steep line is "
            "a steady engine, and dots mark p50, p90 and p99.",
            partial(_latency, reports),
        ),
    ]
    if any(accuracy(report) is not None for report in reports):
        made.append(
            Plot(
                "accuracy",
                f"{_quality(reports)} against the median time of a call: best is the upper left.",
                partial(_accuracy, reports),
            )
        )
    return made


def labels(reports: Sequence[BenchReport]) -> list[str]:
    """A name for each engine: model, precision and backend, with its directory where two are alike."""
    short = [f"{r.engine.model} {r.engine.precision} {r.engine.backend}" for r in reports]
    return [
        _ascii(plain(f"{name}, {report.engine.directory}" if short.count(name) > 1 else name))
        for name, report in zip(short, reports, strict=True)
    ]


def accuracy(report: BenchReport) -> float | None:
    """Top-1 of the engine, or its agreement with fp32 where its images had no labels; percent."""
    found = report.engine.top1 if report.engine.top1 is not None else report.engine.top1_agreement
    return None if found is None else 100 * found


def _quality(reports: Sequence[BenchReport]) -> str:
    kinds = {report.engine.top1 is not None for report in reports if accuracy(report) is not None}
    words = {True: "Top-1 accuracy", False: "Agreement with fp32"}
    return " or ".join(words[kind] for kind in sorted(kinds, reverse=True))


def _batches(reports: Sequence[BenchReport]) -> str:
    return ", ".join(str(size) for size in sorted({report.latency.batch for report in reports}))


def _throughput(reports: Sequence[BenchReport]) -> Figure:
    figure = _figure(320)
    axes = _axes(figure)
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        batches = [result.batch for result in report.batches]
        rates = [result.images_per_second for result in report.batches]
        ends = [
            (rate - 1e3 * r.batch / r.timing.high, 1e3 * r.batch / r.timing.low - rate)
            for rate, r in zip(rates, report.batches, strict=True)
        ]
        # a median that its own rounding has put outside of its interval has an end of length 0
        spans = np.maximum(np.array(ends).T, 0.0)
        axes.errorbar(
            batches,
            rates,
            yerr=spans,
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
    axes.set(xlabel="batch", ylabel="images a second")
    legend(axes)
    return figure


def _latency(reports: Sequence[BenchReport]) -> Figure:
    figure = _figure(320)
    axes = _axes(figure)
    for index, (report, label) in enumerate(zip(reports, labels(reports), strict=True)):
        found = report.latency.timing
        shares = np.linspace(0, 100, len(found.samples)) if len(found.samples) > 1 else np.array([100.0])
        axes.plot(found.samples, shares, linewidth=1.6, color=colour(index), label=label)
        axes.plot([found.p50, found.p90, found.p99], [50, 90, 99], "o", ms=6, color=colour(index))
    axes.set_xscale("log")
    plain_log_ticks(axes, "x")
    axes.set_ylim(0, 101)
    axes.set(xlabel="milliseconds a call", ylabel="% of calls")
    legend(axes)
    return figure


def _accuracy(reports: Sequence[BenchReport]) -> Figure:
    figure = _figure(320)
    axes = _axes(figure)
    points = [
        (index, report, value)
        for index, report in enumerate(reports)
        if (value := accuracy(report)) is not None
    ]
    names = labels(reports)
    for index, report, value in points:
        found = report.latency.timing
        ends = np.maximum([[found.p50 - found.low], [found.high - found.p50]], 0.0)
        axes.errorbar(
            [found.p50], [value], xerr=ends, fmt="o", ms=8, capsize=3, color=colour(index), label=names[index]
        )
    axes.set_xscale("log")
    axes.margins(0.15)
    values = [value for _, _, value in points]
    room = max(0.5, 0.3 * (max(values) - min(values)))
    axes.set_ylim(max(0.0, min(values) - room), min(100.0, max(values)) + room)
    plain_log_ticks(axes, "x")
    axes.set(xlabel="milliseconds a call (p50)", ylabel=f"{_quality(reports)}, %".lower())
    axes.yaxis.label.set_color(_INK)
    legend(axes)
    return figure
