"""The page of ``rescompile report``: measurements as one file that needs no network, light or dark, wide or narrow."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby

from rescompile.measuring.bench import BenchReport
from rescompile.measuring.measurements import Measurements
from rescompile.measuring.origin import Origin
from rescompile.measuring.profile import ProfileReport
from rescompile.measuring.suite_results import Results, Row
from rescompile.presenting.html.report_page import _facts, _figure, _notes, _section, _template, _text
from rescompile.presenting.plots.bench import bench_plots, labels
from rescompile.presenting.plots.forms import Plot
from rescompile.presenting.plots.profile import name_of, profile_plots
from rescompile.presenting.plots.suites import suite_plots
from rescompile.wording import duration, size

_MOST_OPEN_NOTES = 4


def plots_of(found: Measurements) -> list[Plot]:
    """Every plot of the page, in its order."""
    made = bench_plots(found.benches) if found.benches else []
    for number, report in enumerate(found.profiles, 1):
        made += profile_plots(report, number)
    for number, results in enumerate(found.suites, 1):
        made += suite_plots(results, number)
    return made


def render_measurements(found: Measurements) -> str:
    """The page as text, to be written as UTF-8; the same measurements give the same page."""
    drawn = {plot.name: _figure(plot.svg(), plot.caption) for plot in plots_of(found)}
    sections = [
        _stability(tuple(_unstable(found))),
        *_bench_sections(found.benches, drawn),
        *(
            section
            for number, one in enumerate(found.profiles, 1)
            for section in _profile_section(one, number, drawn)
        ),
        *(
            section
            for number, one in enumerate(found.suites, 1)
            for section in _suite_sections(one, number, drawn)
        ),
        _section("Where the figures come from", _origins(found)),
    ]
    return _template().substitute(
        title=_text(_subject(found)),
        tone="",
        verdict=_text(_headline(found)),
        explanation=_text(_explanation(found)),
        body="\n".join(section for section in sections if section),
    )


def _subject(found: Measurements) -> str:
    models = [report.engine.model for report in found.benches]
    models += [engine.engine.model for report in found.profiles for engine in report.engines]
    named = list(dict.fromkeys(models)) or ["the suites"]
    return f"Measurements of {', '.join(named)}"


def _headline(found: Measurements) -> str:
    """The figure that a user decides by: the fastest engine, or how ours stand against their peers."""
    if found.benches:
        best = min(found.benches, key=lambda report: report.latency.timing.p50)
        return f"{best.latency.timing.p50:.3g} ms with {best.engine.precision}"
    if found.profiles:
        best_profile = min(
            (engine for report in found.profiles for engine in report.engines), key=lambda e: e.wall.p50
        )
        return f"{best_profile.wall.p50:.3g} ms with {best_profile.engine.precision}"
    bars = [bar for results in found.suites for bar in results.bars if bar.passed is not None]
    return f"{sum(bool(bar.passed) for bar in bars)} of {len(bars)} promises kept" if bars else "Measured"


def _explanation(found: Measurements) -> str:
    devices = ", ".join(dict.fromkeys(origin.device for origin in found.origins))
    if found.benches:
        best = min(found.benches, key=lambda report: report.latency.timing.p50)
        return (
            f"Median time of a call at batch {best.latency.batch} of the fastest of {len(found.benches)} engines, "
            f"on {devices}. Answers were checked before they were timed."
        )
    return f"On {devices}. Answers were checked before they were timed."


def _unstable(found: Measurements) -> Iterable[str]:
    for report in found.benches:
        yield from (f"{report.engine.directory}: {note}" for note in report.notes)
    for profile in found.profiles:
        yield from (f"profile: {note}" for note in profile.notes)
    for results in found.suites:
        yield from (f"suites: {note}" for note in results.notes)


def _stability(notes: tuple[str, ...]) -> str:
    """One line that opens into all notes: a reader must know that there are some, and how many."""
    if len(notes) < _MOST_OPEN_NOTES:
        return _notes(notes)
    summary = f"{len(notes)} notes on what may have disturbed these figures"
    return f"<details><summary>{summary}</summary>{_notes(notes)}</details>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], *, words: Iterable[int] = (0,)) -> str:
    """A table that scrolls by itself on a narrow screen; columns that are not ``words`` are numbers."""
    left = set(words)

    def row(cells: Sequence[str], tag: str) -> str:
        made = []
        for index, cell in enumerate(cells):
            kind = ' class="state"' if index in left else ' class="number"'
            kind = "" if index == 0 else kind
            name = 'th scope="row"' if index == 0 and tag == "td" else tag
            made.append(f"<{name}{kind}>{_text(cell)}</{name.split()[0]}>")
        return f"<tr>{''.join(made)}</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    head = row(header, "th")
    return f'<div class="plot"><table><thead>{head}</thead><tbody>\n{body}\n</tbody></table></div>'


def _bench_sections(reports: Sequence[BenchReport], drawn: dict[str, str]) -> list[str]:
    if not reports:
        return []
    names = labels(reports)
    rows = [
        [
            name,
            *(f"{v:.3f}" for v in (r.latency.timing.p50, r.latency.timing.p90, r.latency.timing.p99)),
            f"{r.best.images_per_second:.1f} ({r.best.batch})",
            _start(r, "cold"),
            _start(r, "warm"),
            size(max((start.peak_rss_bytes for start in r.warm), default=0)) if r.warm else "",
        ]
        for name, r in zip(names, reports, strict=True)
    ]
    header = [
        "engine",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "images/s (batch)",
        "cold start",
        "warm start",
        "peak memory",
    ]
    return [
        _section("Engines", _table(header, rows)),
        _section("Throughput", drawn["throughput"]),
        _section("Latency", drawn["latency"]),
        _section("Accuracy against latency", drawn.get("accuracy", "")),
    ]


def _start(report: BenchReport, kind: str) -> str:
    starts = report.cold if kind == "cold" else report.warm
    return duration(statistics.median(start.process_seconds for start in starts)) if starts else ""


def _profile_section(report: ProfileReport, number: int, drawn: dict[str, str]) -> list[str]:
    suffix = f"-{number}" if number > 1 else ""
    findings = "".join(f"<li>{_text(finding)}</li>" for finding in report.findings)
    names = [name_of(engine, report) for engine in report.engines]
    header = ["block", "Mop", *(f"{name} {what}" for name in names for what in ("ms", "MB", "x floor"))]
    rows = []
    for blocks in zip(*(engine.blocks for engine in report.engines), strict=True):
        cells = [
            (
                f"{block.ms:.3f}",
                f"{block.work.bytes / 1e6:.2f}",
                f"{block.ms / block.floor_ms:.1f}" if block.floor_ms else "",
            )
            for block in blocks
        ]
        rows.append(
            [blocks[0].block, f"{blocks[0].work.ops / 1e6:.0f}", *(c for cell in cells for c in cell)]
        )
    title = _text(report.engines[0].engine.model)
    table = f"<details><summary>Every block</summary>{_table(header, rows)}</details>"
    return [
        _section(
            f"Where the time of {title} goes", f"<ul>{findings}</ul>\n{drawn[f'timeline{suffix}']}\n{table}"
        ),
        _section(f"{title} against this machine's limits", drawn[f"roofline{suffix}"]),
    ]


def _suite_sections(results: Results, number: int, drawn: dict[str, str]) -> list[str]:
    made = []
    if results.bars:
        header = ["promise", "asked", "measured", ""]
        rows = [
            [
                bar.name,
                f"{bar.asked:.2f}x",
                "" if bar.measured is None else f"{bar.measured:.2f}x",
                {True: "kept", False: "missed", None: "not measured"}[bar.passed],
            ]
            for bar in results.bars
        ]
        made.append(_section("Promises", _table(header, rows, words=(0, 3))))
    for (suite, case), rows_of_case in groupby(results.rows, key=lambda row: (row.suite, row.case)):
        figure = drawn.get(f"suite-{number}-{case.replace(' ', '-')}", "")
        made.append(_section(_text(f"{suite}: {case}"), figure + _race(list(rows_of_case))))
    return made


def _race(rows: Sequence[Row]) -> str:
    header = ["contender", "batch", "p50 ms", "to best peer", "of roofline"]
    timed = [
        [
            row.contender,
            str(row.batch),
            f"{row.timing.p50:.3f}",
            "" if row.ratio_to_best_peer is None else f"{row.ratio_to_best_peer:.2f}x",
            "" if row.share_of_roofline is None else f"{100 * row.share_of_roofline:.0f} %",
        ]
        for row in rows
        if row.timing is not None
    ]
    skipped = "".join(f"<li>{_text(f'{row.contender}: {row.skipped}')}</li>" for row in rows if row.skipped)
    table = _table(header, timed) if timed else ""
    return table + (f"<details><summary>Not raced</summary><ul>{skipped}</ul></details>" if skipped else "")


def _origins(found: Measurements) -> str:
    return "\n".join(
        _facts([("file", file), *_origin(origin)])
        for file, origin in zip(_files(found), found.origins, strict=True)
    )


def _files(found: Measurements) -> list[str]:
    """Names of the files in the order of ``found.origins``."""
    kinds = [*(report.engine.directory for report in found.benches)]
    kinds += [
        "profile of " + ", ".join(e.engine.directory for e in report.engines) for report in found.profiles
    ]
    return [*kinds, *(results.command for results in found.suites)]


def _origin(origin: Origin) -> list[tuple[str, str]]:
    return [
        ("device", origin.device),
        ("threads", str(origin.threads)),
        ("commit", origin.commit),
        ("date", origin.date),
        *((name, value) for name, value in origin.machine.items() if name not in {"cpu", "rescompile"}),
        *origin.settings.items(),
    ]
