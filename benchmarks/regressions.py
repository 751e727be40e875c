"""Finds what became slower: ``python -m benchmarks.regressions BASELINE.json CURRENT.json``

Two runs of the suites are compared by the ratios of a peer's time to ours within each run, because another machine,
clock or load changes both times alike. Exit code: 0 nothing is worse, 1 a ratio became worse beyond its noise or is
gone, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import msgspec

from benchmarks.rows import Results, Row, read_results
from rescompile.errors import reason_of
from rescompile.presenting.terminal.table import columns

DEFAULT_TOLERANCE = 0.05

Verdict = Literal["worse", "better", "same", "gone"]


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One contender of ours in both runs; ``current`` is None where the later run has no ratio."""

    case: str
    contender: str
    peer: str
    baseline: float
    current: float | None
    verdict: Verdict
    reason: str = ""


def compare_runs(baseline: Results, current: Results, tolerance: float) -> list[Comparison]:
    """Every row of ours that had a time and a peer in ``baseline``, in its order."""
    return list(_comparisons(baseline, current, tolerance))


def _comparisons(baseline: Results, current: Results, tolerance: float) -> Iterator[Comparison]:
    now = {_key(row): row for row in current.rows}
    for row in baseline.rows:
        if not row.ours or row.timing is None or not _several(row):
            continue
        peers = _peers(row, baseline)
        if not peers:
            continue
        common = [peer for peer in peers if (other := now.get(_key(peer))) is not None and other.timing]
        own = now.get(_key(row))
        peer = (common or peers)[0]
        before = _ratio(peer, row)
        if own is None or own.timing is None or not common:
            reason = "no peer of both runs" if own is not None and own.timing else _why(own)
            yield Comparison(
                case=row.case, contender=row.contender, peer=peer.contender, baseline=before, current=None,
                verdict="gone", reason=reason,
            )  # fmt: skip
            continue
        other = now[_key(peer)]
        yield Comparison(
            case=row.case, contender=row.contender, peer=peer.contender, baseline=before,
            current=_ratio(other, own), verdict=_verdict((peer, row), (other, own), tolerance),
        )  # fmt: skip


def _key(row: Row) -> tuple[str, str, str]:
    return row.suite, row.case, row.contender


def _several(row: Row) -> bool:
    """Whether there are enough rounds for an interval; builds run once, so they are not compared."""
    return row.timing is not None and len(row.timing.rounds) > 1


def _peers(row: Row, results: Results) -> list[Row]:
    """Peers of the row's case with a time, the best one first."""
    found = [
        other
        for other in results.rows
        if (other.suite, other.case) == (row.suite, row.case) and not other.ours and other.timing is not None
    ]
    return sorted(found, key=lambda peer: peer.ms_per_image or 0.0)


def _ratio(peer: Row, own: Row) -> float:
    """The peer's time by image over ours: higher is better."""
    return (peer.ms_per_image or 0.0) / (own.ms_per_image or 1.0)


def _span(peer: Row, own: Row) -> tuple[float, float]:
    """The interval of the ratio, from the intervals of both medians."""
    assert peer.timing is not None
    assert own.timing is not None
    scale = own.batch / peer.batch
    return scale * peer.timing.low / own.timing.high, scale * peer.timing.high / own.timing.low


def _verdict(before: tuple[Row, Row], after: tuple[Row, Row], tolerance: float) -> Verdict:
    """Worse or better only beyond the tolerance and with intervals that do not overlap."""
    (low_before, high_before), (low_after, high_after) = _span(*before), _span(*after)
    change = _ratio(*after) / _ratio(*before)
    if change < 1 - tolerance and high_after < low_before:
        return "worse"
    if change > 1 + tolerance and low_after > high_before:
        return "better"
    return "same"


def _why(row: Row | None) -> str:
    return "it was not timed" if row is None else row.skipped or "it has no time"


def lines(verdicts: Sequence[Comparison]) -> list[str]:
    """The table, and one line of summary."""
    rows = [
        [
            found.case,
            found.contender,
            found.peer,
            f"{found.baseline:.3f}",
            "" if found.current is None else f"{found.current:.3f}",
            f"{found.verdict}: {found.reason}" if found.reason else found.verdict,
        ]
        for found in verdicts
    ]
    bad = [found for found in verdicts if found.verdict in ("worse", "gone")]
    said = (
        f"{len(bad)} of {len(rows)} ratios are worse or gone"
        if bad
        else f"none of {len(rows)} ratios is worse or gone"
    )
    header = ["case", "ours", "peer", "before", "now", ""]
    return [*columns([header, *rows], right=(3, 4)), said]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Compare two result files and exit."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], prog="python -m benchmarks.regressions"
    )
    parser.add_argument("baseline", type=Path)
    parser.add_argument("current", type=Path)
    parser.add_argument(
        "--tolerance", type=float, default=DEFAULT_TOLERANCE, help="smallest loss that counts (0.05)"
    )
    asked = parser.parse_args(arguments)
    if not 0 <= asked.tolerance < 1:
        parser.error(f"--tolerance {asked.tolerance:g}: a share of the ratio, from 0 to below 1")
    runs = []
    for path in (asked.baseline, asked.current):
        try:
            runs.append(read_results(path))
        except (OSError, msgspec.DecodeError) as error:
            parser.error(
                f"{path} is not a result of the suites ({reason_of(error)}); pass one of benchmarks/results/"
            )
    verdicts = compare_runs(*runs, asked.tolerance)
    if not verdicts:
        parser.error(
            f"{asked.baseline} has no row of ours with a peer beside it, so there is nothing to compare"
        )
    print(*lines(verdicts), sep="\n")
    sys.exit(1 if any(found.verdict in ("worse", "gone") for found in verdicts) else 0)


if __name__ == "__main__":
    main()
