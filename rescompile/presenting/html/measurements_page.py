"""The page of ``rescompile report``: results of ``bench`` and ``profile``."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rescompile.measuring.bench import BenchReport
from rescompile.measuring.cold_start import Start
from rescompile.measuring.measurements import Measurements
from rescompile.measuring.origin import Origin
from rescompile.measuring.profile_report import ProfileReport
from rescompile.presenting.html import page
from rescompile.presenting.plots.bench import bench_plots, labels
from rescompile.presenting.plots.plot import Plot
from rescompile.presenting.plots.profile import name_of, notes_above_the_line, profile_plots
from rescompile.wording import duration


def plots_of(found: Measurements) -> list[Plot]:
    """Every plot of the page, in its order."""
    made = bench_plots(found.benches)
    for number, report in enumerate(found.profiles, 1):
        made += profile_plots(report, number)
    return made


def render_measurements(found: Measurements) -> str:
    """The page as text, to be written as UTF-8; the same measurements give the same page."""
    engines = [report.engine for report in found.benches]
    engines += [profiled.engine for report in found.profiles for profiled in report.engines]
    headline, explanation = _headline(found)
    return page.render(
        "measurements.html",
        title=f"Measurements of {', '.join(dict.fromkeys(engine.model for engine in engines))}",
        tone="",
        headline=headline,
        explanation=explanation,
        notes=[
            *(f"{report.engine.directory}: {note}" for report in found.benches for note in report.notes),
            *(f"profile: {note}" for report in found.profiles for note in report.notes),
            *(note for report in found.profiles for note in notes_above_the_line(report)),
        ],
        benches=list(zip(labels(found.benches), found.benches, strict=True)),
        profiles=found.profiles,
        plots={plot.name: plot for plot in plots_of(found)},
        profile_header=_profile_header,
        origins=origins(found),
        start_time=_start_time,
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


def _headline(found: Measurements) -> tuple[str, str]:
    """The time of the fastest engine, and what was measured where."""
    origins = [*(report.origin for report in found.benches), *(report.origin for report in found.profiles)]
    devices = ", ".join(dict.fromkeys(origin.device for origin in origins))
    checked = "Answers were checked before they were timed."
    if found.benches:
        best = min(found.benches, key=lambda report: report.latency.timing.p50)
        if (slow := _fp32_beside(best, found.benches)) is not None:
            ours, fp32 = best.latency.timing.p50, slow.latency.timing.p50
            return (
                f"{fp32 / ours:.1f}x faster than fp32",
                f"{best.engine.precision} takes {ours:.3g} ms for a call at batch {best.latency.batch}, fp32 "
                f"{fp32:.3g} ms (medians), on {devices}. {checked}",
            )
        return (
            f"{best.latency.timing.p50:.3g} ms with {best.engine.precision}",
            f"Median time of a call at batch {best.latency.batch} of the fastest of {len(found.benches)} engines, "
            f"on {devices}. {checked}",
        )
    profiled = [engine for report in found.profiles for engine in report.engines]
    fastest = min(profiled, key=lambda engine: engine.wall.p50)
    return f"{fastest.wall.p50:.3g} ms with {fastest.engine.precision}", f"On {devices}. {checked}"


def _fp32_beside(best: BenchReport, benches: Sequence[BenchReport]) -> BenchReport | None:
    """The fastest fp32 engine of the same network, batch and device that ``best`` is faster than."""
    peers = [
        report
        for report in benches
        if report.engine.precision == "fp32" != best.engine.precision
        and (report.engine.model, report.latency.batch, report.origin.device)
        == (best.engine.model, best.latency.batch, best.origin.device)
    ]
    return min(peers, key=lambda report: report.latency.timing.p50, default=None)


def origins(found: Measurements) -> tuple[list[tuple[str, str]], list[tuple[str, list[tuple[str, str]]]]]:
    """Facts that all results share, and for each result what it is of and the facts that are its own."""
    every = [(f"engine {report.engine.directory}", origin_lines(report.origin)) for report in found.benches]
    for report in found.profiles:
        names = ", ".join(engine.engine.directory for engine in report.engines)
        every.append((f"profile of {names}", origin_lines(report.origin)))
    shared = [line for line in every[0][1] if all(line in lines for _, lines in every)]
    return shared, [(name, [line for line in lines if line not in shared]) for name, lines in every]


def _profile_header(report: ProfileReport) -> list[str]:
    names = [name_of(engine, report) for engine in report.engines]
    return ["block", "Mop", *(f"{name} {figure}" for name in names for figure in ("ms", "MB", "x floor"))]


def _start_time(starts: Sequence[Start]) -> str:
    return duration(statistics.median(start.process_seconds for start in starts)) if starts else ""
