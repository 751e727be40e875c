"""Ratios within a run of the suites, and the promises that are judged by them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.suite_results import Bar, Results, Row, read_results

__all__ = ["RESULTS", "Bar", "Results", "Row", "judged", "read_results", "with_ratios"]

RESULTS = Path(__file__).parent / "results"


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """``rows`` with each one's ratio to the best peer of its case, itself left out; the peers' own have theirs, too."""
    return [_with_ratio(row, [other for other in rows if _rivals(row, other)]) for row in rows]


def _rivals(row: Row, other: Row) -> bool:
    same = (row.suite, row.case) == (other.suite, other.case)
    return same and not other.ours and other.contender != row.contender and other.timing is not None


def _with_ratio(row: Row, peers: Sequence[Row]) -> Row:
    own = row.ms_per_image
    changes: dict[str, Any] = {}
    if own and row.timing is not None and row.floor_ms is not None:
        changes["share_of_roofline"] = row.floor_ms / row.timing.p50
    if own and peers:
        best = min(peers, key=lambda peer: peer.ms_per_image or float("inf"))
        changes |= {"best_peer": best.contender, "ratio_to_best_peer": (best.ms_per_image or 0.0) / own}
    return msgspec.structs.replace(row, **changes)


def judged(promises: Iterable[tuple[str, str, str, str, float]], rows: Sequence[Row]) -> tuple[Bar, ...]:
    """Bars of (name, case, ours, peer, asked ratio), each with what was measured."""
    times = {(row.case, row.contender): row.ms_per_image for row in rows if row.ms_per_image}
    bars = []
    for name, case, ours, peer, asked in promises:
        own, other = times.get((case, ours)), times.get((case, peer))
        measured = other / own if own and other else None
        passed = None if measured is None else measured >= asked
        bars.append(
            Bar(name=name, case=case, ours=ours, peer=peer, asked=asked, measured=measured, passed=passed)
        )
    return tuple(bars)
