"""``rescompile bench --compare A.json B.json``: which figures of two runs differ by more than their noise.

A time has changed where the 95 % intervals of both medians are apart and the medians differ by more than 2 % and more
than either run drifted between its own rounds. Starts are few, so their whole ranges stand for intervals.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from calibration.names import text_of
from rescompile.errors import UsageError
from rescompile.measuring.bench import BenchReport
from rescompile.measuring.start import Start
from rescompile.measuring.timing import Timing

LEAST_CHANGE = 0.02
"""Smaller changes of a median are nobody's concern, however sure."""
LEAST_MEMORY_CHANGE = 0.05

Verdict = Literal["better", "worse", "within noise"]


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure in both runs; in all of them less is better."""

    name: str
    unit: Literal["ms", "s", "bytes"]
    a: float
    b: float
    ratio: float
    """b over a."""
    verdict: Verdict


class BenchComparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two runs of ``rescompile bench``."""

    a: str
    b: str
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    """What else differs between the runs, so that it may be the reason."""

    def to_json(self) -> bytes:
        """The comparison as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


def read_bench(path: Path) -> BenchReport:
    """A report that ``rescompile bench --output`` or ``--json`` wrote.

    Raises:
        UsageError: the file cannot be read, or is something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=BenchReport)
    except OSError as error:
        raise UsageError(f"{text_of(path)} cannot be read ({error.strerror}); check the path") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{text_of(path)} is no result of rescompile bench ({error}); make one with "
            "rescompile bench DIR --output FILE.json"
        ) from None


def compare_bench(a: Path, b: Path) -> BenchComparison:
    """Compare the runs in two files.

    Raises:
        UsageError: one of them is no result of ``rescompile bench``.
    """
    first, second = read_bench(a), read_bench(b)
    return BenchComparison(
        a=text_of(a),
        b=text_of(b),
        changes=tuple(_changes(first, second)),
        notes=(*_differences(first, second), *_own_notes(first, "A"), *_own_notes(second, "B")),
    )


def _changes(a: BenchReport, b: BenchReport) -> Iterator[Change]:
    others = {result.batch: result.timing for result in b.batches}
    for result in a.batches:
        if result.batch in others:
            yield _timed(f"batch {result.batch}", result.timing, others[result.batch])
    for name, ours, theirs in (("cold start", a.cold, b.cold), ("warm start", a.warm, b.warm)):
        if ours and theirs:
            yield _started(name, ours, theirs)
            yield _loaded(name, ours, theirs)
            yield _memory(f"{name}: memory", _peak(ours), _peak(theirs))
    yield _memory("payload", a.engine.bytes, b.engine.bytes)


def changed(a: Timing, b: Timing) -> bool:
    """Whether two timings differ by more than their noise."""
    apart = a.high < b.low or b.high < a.low
    noise = max(LEAST_CHANGE, _wandering(a), _wandering(b))
    return apart and abs(b.p50 / a.p50 - 1) > noise


def _wandering(found: Timing) -> float:
    """Distance between the quartiles of the rounds' medians, as a share of the median."""
    if len(found.rounds) < 2:
        return 0.0
    low, _, high = statistics.quantiles(found.rounds, n=4, method="inclusive")
    return (high - low) / found.p50


def _timed(name: str, a: Timing, b: Timing) -> Change:
    ratio = b.p50 / a.p50
    return Change(
        name=name, unit="ms", a=a.p50, b=b.p50, ratio=ratio, verdict=_verdict(ratio, differs=changed(a, b))
    )


def _started(name: str, a: tuple[Start, ...], b: tuple[Start, ...]) -> Change:
    return _ranges(name, [one.process_seconds for one in a], [one.process_seconds for one in b])


def _loaded(name: str, a: tuple[Start, ...], b: tuple[Start, ...]) -> Change:
    return _ranges(f"{name}: load", [one.load_seconds for one in a], [one.load_seconds for one in b])


def _ranges(name: str, a: list[float], b: list[float]) -> Change:
    first, second = statistics.median(a), statistics.median(b)
    ratio = second / first
    apart = max(a) < min(b) or max(b) < min(a)
    differs = apart and abs(ratio - 1) > LEAST_CHANGE and min(len(a), len(b)) > 1
    return Change(
        name=name, unit="s", a=first, b=second, ratio=ratio, verdict=_verdict(ratio, differs=differs)
    )


def _peak(starts: tuple[Start, ...]) -> int:
    return round(statistics.median(start.peak_rss_bytes for start in starts))


def _memory(name: str, a: int, b: int) -> Change:
    ratio = b / a if a else 1.0
    differs = abs(ratio - 1) > LEAST_MEMORY_CHANGE
    return Change(name=name, unit="bytes", a=a, b=b, ratio=ratio, verdict=_verdict(ratio, differs=differs))


def _verdict(ratio: float, *, differs: bool) -> Verdict:
    if not differs:
        return "within noise"
    return "better" if ratio < 1 else "worse"


def _differences(a: BenchReport, b: BenchReport) -> Iterator[str]:
    pairs = {
        "device": (a.origin.device, b.origin.device),
        "cores": (a.origin.machine.get("cores"), b.origin.machine.get("cores")),
        "threads": (a.origin.threads, b.origin.threads),
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
