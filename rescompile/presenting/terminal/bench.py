"""Terminal output of ``rescompile bench``: aligned lines, then the notes."""

from __future__ import annotations

import statistics

from rescompile.measuring.bench import BenchReport
from rescompile.measuring.cold_start import Start
from rescompile.measuring.run_comparison import BenchComparison, Change
from rescompile.presenting.terminal.table import columns
from rescompile.wording import duration, plain, size


def print_bench(report: BenchReport) -> None:
    """Print one line a batch size, one a kind of start, then where the figures come from."""
    print(*lines(report), sep="\n")


def lines(report: BenchReport) -> list[str]:
    """The report as text."""
    engine, source = report.engine, report.origin
    header = ["batch", "p50 ms", "p90 ms", "p99 ms", "95 % of p50", "images/s", "runs", ""]
    rows = [
        [
            str(result.batch),
            *(f"{value:.3f}" for value in (result.timing.p50, result.timing.p90, result.timing.p99)),
            f"{result.timing.low:.3f} to {result.timing.high:.3f}",
            f"{result.images_per_second:.1f}",
            str(result.timing.runs),
            "<- most images per second" if result is report.best else "",
        ]
        for result in report.batches
    ]
    text = [
        f"{engine.model} {engine.precision} {engine.backend}, {engine.directory}, {engine.input}",
        *columns([header, *rows], right=(0, 1, 2, 3, 5, 6)),
        *([f"each time is that of {report.requests} calls at the same time"] if report.requests > 1 else []),
        *_starts(report),
        f"payload {size(engine.bytes)}",
        f"measured on {source.device}, {source.threads} threads, commit {source.commit}, {source.date}",
        *(f"note: {note}" for note in report.notes),
    ]
    return [plain(line) for line in text]


def _starts(report: BenchReport) -> list[str]:
    if not report.cold:
        return []
    header = ["start", "to first answer", "load", "first answer", "memory", "peak"]
    rows = [_start("cold", report.cold), _start("warm", report.warm)]
    return columns([header, *rows], right=(1, 2, 3, 4, 5))


def _start(name: str, starts: tuple[Start, ...]) -> list[str]:
    def median(field: str) -> float:
        return float(statistics.median(getattr(start, field) for start in starts))

    return [
        name,
        *(duration(median(field)) for field in ("process_seconds", "load_seconds", "first_seconds")),
        *(size(round(median(field))) for field in ("rss_bytes", "peak_rss_bytes")),
    ]


def print_bench_comparison(comparison: BenchComparison) -> None:
    """Print one line a figure, changes marked, then what else differs."""
    print(*comparison_lines(comparison), sep="\n")


def comparison_lines(comparison: BenchComparison) -> list[str]:
    """The comparison as text."""
    rows = [
        [
            change.name,
            _value(change, change.a),
            _value(change, change.b),
            f"{change.ratio:.3f}",
            change.verdict,
        ]
        for change in comparison.changes
    ]
    changed = sum(change.verdict != "within noise" for change in comparison.changes)
    text = [
        f"A  {comparison.a}",
        f"B  {comparison.b}",
        *columns([["", "A", "B", "B / A", ""], *rows], right=(1, 2, 3)),
        f"{changed} of {len(rows)} figures changed beyond noise"
        if changed
        else "nothing changed beyond noise",
        *(f"note: {note}" for note in comparison.notes),
    ]
    return [plain(line) for line in text]


def _value(change: Change, value: float) -> str:
    return size(round(value)) if change.unit == "bytes" else f"{value:.3f} {change.unit}"
