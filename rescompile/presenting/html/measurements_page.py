"""The page of ``rescompile report``: results of ``bench`` and ``profile``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import chain

from rescompile.measuring.bench import BenchReport
from rescompile.measuring.measurements import Measurements
from rescompile.measuring.origin import Origin
from rescompile.measuring.profile import BlockProfile, ProfileReport
from rescompile.measuring.start import Start
from rescompile.presenting.html import page
from rescompile.presenting.plots.bench import bench_plots, labels
from rescompile.presenting.plots.plot import Plot
from rescompile.presenting.plots.profile import name_of, roofline, timeline
from rescompile.wording import duration, size

Row = tuple[str, ...]

BENCH_HEADER = (
    "engine",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "images/s (batch)",
    "cold start",
    "warm start",
    "peak memory",
)


def plots_of(found: Measurements) -> list[Plot]:
    """Every plot of the page, in its order."""
    benches = bench_plots(found.benches) if found.benches else []
    return [*benches, *chain.from_iterable(_profile_plots(found.profiles))]


def render_measurements(found: Measurements) -> str:
    """The page as text, to be written as UTF-8; the same measurements give the same page."""
    headline, explanation = _headline(found)
    return page.render(
        "measurements.html",
        title=f"Measurements of {', '.join(_models(found))}",
        tone="",
        headline=headline,
        explanation=explanation,
        notes=_notes(found),
        bench_header=BENCH_HEADER,
        bench_rows=_bench_rows(found.benches),
        bench_plots={plot.name: plot for plot in bench_plots(found.benches)} if found.benches else {},
        profiles=[
            {
                "model": report.engines[0].engine.model,
                "findings": report.findings,
                "roofline": limits,
                "timeline": blocks,
                "header": _profile_header(report),
                "rows": _profile_rows(report),
            }
            for report, (limits, blocks) in zip(found.profiles, _profile_plots(found.profiles), strict=True)
        ],
        origins=_origins(found),
    )


def origin_lines(origin: Origin) -> list[tuple[str, str]]:
    """Machine, software and settings of a measurement as lines of (label, value)."""
    return [
        ("device", origin.device),
        ("threads", str(origin.threads)),
        ("commit", origin.commit),
        ("date", origin.date),
        *((name, value) for name, value in origin.machine.items() if name not in {"cpu", "rescompile"}),
        *origin.settings.items(),
    ]


def _models(found: Measurements) -> list[str]:
    engines = [report.engine for report in found.benches]
    engines += [profiled.engine for report in found.profiles for profiled in report.engines]
    return list(dict.fromkeys(engine.model for engine in engines))


def _headline(found: Measurements) -> tuple[str, str]:
    """The time of the fastest engine, and what was measured where."""
    origins = [report.origin for report in (*found.benches, *found.profiles)]
    devices = ", ".join(dict.fromkeys(origin.device for origin in origins))
    checked = "Answers were checked before they were timed."
    if found.benches:
        best = min(found.benches, key=lambda report: report.latency.timing.p50)
        return (
            f"{best.latency.timing.p50:.3g} ms with {best.engine.precision}",
            f"Median time of a call at batch {best.latency.batch} of the fastest of {len(found.benches)} engines, "
            f"on {devices}. {checked}",
        )
    profiled = [engine for report in found.profiles for engine in report.engines]
    fastest = min(profiled, key=lambda engine: engine.wall.p50)
    return f"{fastest.wall.p50:.3g} ms with {fastest.engine.precision}", f"On {devices}. {checked}"


def _notes(found: Measurements) -> list[str]:
    notes = [f"{report.engine.directory}: {note}" for report in found.benches for note in report.notes]
    return notes + [f"profile: {note}" for report in found.profiles for note in report.notes]


def _bench_rows(reports: Sequence[BenchReport]) -> list[Row]:
    return [
        (
            name,
            *(f"{value:.3f}" for value in (timing.p50, timing.p90, timing.p99)),
            f"{report.best.images_per_second:.1f} ({report.best.batch})",
            _start(report.cold),
            _start(report.warm),
            size(max(start.peak_rss_bytes for start in report.warm)) if report.warm else "",
        )
        for name, report in zip(labels(reports), reports, strict=True)
        for timing in [report.latency.timing]
    ]


def _start(starts: Sequence[Start]) -> str:
    return duration(statistics.median(start.process_seconds for start in starts)) if starts else ""


def _profile_plots(reports: Sequence[ProfileReport]) -> list[tuple[Plot, Plot]]:
    suffixes = ["" if number == 1 else f"-{number}" for number in range(1, len(reports) + 1)]
    return [
        (roofline(report, suffix), timeline(report, suffix))
        for report, suffix in zip(reports, suffixes, strict=True)
    ]


def _profile_header(report: ProfileReport) -> Row:
    names = [name_of(engine, report) for engine in report.engines]
    return ("block", "Mop", *(f"{name} {figure}" for name in names for figure in ("ms", "MB", "x floor")))


def _profile_rows(report: ProfileReport) -> list[Row]:
    return [
        (
            blocks[0].block,
            f"{blocks[0].work.ops / 1e6:.0f}",
            *chain.from_iterable(_cells(block) for block in blocks),
        )
        for blocks in zip(*(engine.blocks for engine in report.engines), strict=True)
    ]


def _cells(block: BlockProfile) -> Row:
    times = f"{block.ms / block.floor_ms:.1f}" if block.floor_ms else ""
    return f"{block.ms:.3f}", f"{block.work.bytes / 1e6:.2f}", times


def _origins(found: Measurements) -> list[list[tuple[str, str]]]:
    benches = [[("file", r.engine.directory), *origin_lines(r.origin)] for r in found.benches]
    return benches + [
        [
            ("file", f"profile of {', '.join(e.engine.directory for e in report.engines)}"),
            *origin_lines(report.origin),
        ]
        for report in found.profiles
    ]
