"""Prints a run of the suites on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from benchmarks.rows import Results, Row
from rescompile.presenting.terminal.table import columns
from rescompile.wording import plain, size


def lines(found: Results) -> Iterator[str]:
    """The rows by case, the targets and the notes."""
    for (suite, case), rows in groupby(found.rows, key=lambda row: (row.suite, row.case)):
        yield ""
        yield plain(f"{suite}: {case}")
        yield from _rows(list(rows))
    yield ""
    for target in found.bars:
        measured = "not measured" if target.measured is None else f"{target.measured:.2f}x"
        verdict = {None: "", True: "passed", False: "MISSED"}[target.passed]
        yield f"{target.name:36} asked {target.asked:.2f}x  {measured:>13}  {verdict}".rstrip()
    yield from (plain(f"note: {note}") for note in found.notes)
    yield plain(
        f"{found.origin.device}, {found.origin.threads} threads, commit {found.origin.commit}, "
        f"{found.origin.date}, {found.seconds / 60:.1f} minutes"
    )


def _rows(rows: list[Row]) -> list[str]:
    timed = [row for row in rows if row.timing is not None]
    header = ["", "batch", "p50 ms", "95 % of p50", "ms/image", "to best peer", "of roofline", "memory"]
    table = columns([header, *(_row(row) for row in timed)], right=(1, 2, 4, 5, 6, 7)) if timed else []
    return [*table, *(plain(f"{r.contender}: skipped: {r.skipped}") for r in rows if r.skipped)]


def _row(row: Row) -> list[str]:
    assert row.timing is not None
    ratio, share = row.ratio_to_best_peer, row.share_of_roofline
    return [
        row.contender,
        str(row.batch),
        f"{row.timing.p50:.3f}",
        f"{row.timing.low:.3f} to {row.timing.high:.3f}",
        f"{row.timing.p50 / row.batch:.3f}",
        "" if ratio is None else f"{ratio:.2f}x",
        "" if share is None else f"{100 * share:.0f} %",
        "" if row.peak_rss_bytes is None else size(row.peak_rss_bytes),
    ]
