"""``rescompile bench --compare A.json B.json``: the figures of two runs that differ by more than their noise.

A time has changed if the 95 % intervals of both medians do not overlap and the medians differ by more than 2 % and by
more than either run drifted between its own rounds. Starts are few, so their whole ranges are used as intervals.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Literal

import msgspec

from calibration.file_names import text_of
from rescompile.measuring.bench import BenchReport
from rescompile.measuring.measurements import read_bench
from rescompile.measuring.timing import Timing
from rescompile.report import JsonReport

LEAST_CHANGE = 0.02
"""Smaller changes of a median do not matter, however certain."""
LEAST_MEMORY_CHANGE = 0.05

Verdict = Literal["better", "worse", "within noise"]
Unit = Literal["ms", "s", "bytes"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure in both runs; less is always better."""

    name: str
    unit: Unit
    a: float
    b: float
    ratio: float
    """b over a."""
    verdict: Verdict


class BenchComparison(JsonReport, frozen=True, kw_only=True):
    """Two runs of ``rescompile bench``."""

    a: str
    b: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    """Other differences between the runs, which may be the reason."""


def compare_bench(a: Path, b: Path) -> BenchComparison:
    """Compare the runs in two files.

    Raises:
        UsageError: one of them is not a result of ``rescompile bench``.
    """
    first, second = read_bench(a), read_bench(b)
    return BenchComparison(
        a=text_of(a),
        b=text_of(b),
        changes=tuple(_changes(first, second)),
        notes=(*_differences(first, second), *_own_notes(first, "A"), *_own_notes(second, "B")),
    )


def changed(a: Timing, b: Timing) -> bool:
    """Whether two timings differ by more than their noise."""
    apart = a.high < b.low or b.high < a.low
    noise = max(LEAST_CHANGE, _drift(a), _drift(b))
    return apart and abs(b.p50 / a.p50 - 1) > noise


def _drift(found: Timing) -> float:
    """Distance between the quartiles of the rounds' medians, as a share of the median."""
    if len(found.rounds) < 2:
        return 0.0
    low, _, high = statistics.quantiles(found.rounds, n=4, method="inclusive")
    return (high - low) / found.p50


def _changes(a: BenchReport, b: BenchReport) -> Iterator[Change]:
    others = {result.batch: result.timing for result in b.batches}
    for result in a.batches:
        if result.batch in others:
            ours, theirs = result.timing, others[result.batch]
            yield _change(f"batch {result.batch}", "ms", ours.p50, theirs.p50, differs=changed(ours, theirs))
    for name, first, second in (("cold start", a.cold, b.cold), ("warm start", a.warm, b.warm)):
        if first and second:
            for figure, field in ((name, "process_seconds"), (f"{name}: load", "load_seconds")):
                yield _few_times(figure, [*map(attrgetter(field), first)], [*map(attrgetter(field), second)])
            peaks = (round(statistics.median(one.peak_rss_bytes for one in all_)) for all_ in (first, second))
            yield _memory(f"{name}: memory", *peaks)
    yield _memory("payload", a.engine.bytes, b.engine.bytes)


def _few_times(name: str, a: Sequence[float], b: Sequence[float]) -> Change:
    first, second = statistics.median(a), statistics.median(b)
    apart = max(a) < min(b) or max(b) < min(a)
    differs = apart and abs(second / first - 1) > LEAST_CHANGE and min(len(a), len(b)) > 1
    return _change(name, "s", first, second, differs=differs)


def _memory(name: str, a: int, b: int) -> Change:
    return _change(name, "bytes", a, b, differs=a > 0 and abs(b / a - 1) > LEAST_MEMORY_CHANGE)


def _change(name: str, unit: Unit, a: float, b: float, *, differs: bool) -> Change:
    verdict: Verdict = "within noise" if not differs else "better" if b < a else "worse"
    return Change(name=name, unit=unit, a=a, b=b, ratio=b / a if a else 1.0, verdict=verdict)


def _differences(a: BenchReport, b: BenchReport) -> Iterator[str]:
    pairs = {
        "device": (a.origin.device, b.origin.device),
        "cores": (a.origin.machine.get("cores"), b.origin.machine.get("cores")),
        "threads": (a.origin.threads, b.origin.threads),
        "number of calls at the same time": (a.requests, b.requests),
        "commit": (a.origin.commit, b.origin.commit),
        "model": (a.engine.model, b.engine.model),
        "precision": (a.engine.precision, b.engine.precision),
        "backend": (a.engine.backend, b.engine.backend),
        "weights": (a.engine.checkpoint_sha256[:12], b.engine.checkpoint_sha256[:12]),
        "input": (a.engine.input, b.engine.input),
        a.engine.backend: tuple(r.origin.machine.get(r.engine.backend) for r in (a, b)),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            yield f"{name} differs: {ours} in A, {theirs} in B"
    if {r.batch for r in a.batches} != {r.batch for r in b.batches}:
        yield "the batch sizes differ; only those that both runs have are compared"


def _own_notes(report: BenchReport, side: str) -> Iterator[str]:
    unstable = [note for note in report.notes if "may be unstable" in note]
    if unstable:
        more = f" (and {len(unstable) - 1} notes more in its file)" if len(unstable) > 1 else ""
        yield f"{side}: {unstable[0]}{more}"
