"""Ratios to the best peer within a run of the suites, and the targets for these ratios."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.suite_results import Results, Row, TargetResult, read_results

__all__ = ["RESULTS", "Results", "Row", "TargetResult", "measured_targets", "read_results", "with_ratios"]

RESULTS = Path(__file__).parent / "results"


def with_ratios(rows: Sequence[Row]) -> list[Row]:
    """``rows``, each with its ratio to the best other peer of its case; peers have one, too."""
    return [_with_ratio(row, [other for other in rows if _is_peer(row, other)]) for row in rows]


def _is_peer(row: Row, other: Row) -> bool:
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


def measured_targets(
    targets: Iterable[tuple[str, str, str, str, float]], rows: Sequence[Row]
) -> tuple[TargetResult, ...]:
    """Each target (name, case, ours, peer, ratio) with its measured ratio."""
    times = {(row.case, row.contender): row.ms_per_image for row in rows if row.ms_per_image}
    results = []
    for name, case, ours, peer, asked in targets:
        own, other = times.get((case, ours)), times.get((case, peer))
        measured = other / own if own and other else None
        passed = None if measured is None else measured >= asked
        results.append(
            TargetResult(
                name=name, case=case, ours=ours, peer=peer, asked=asked, measured=measured, passed=passed
            )
        )
    return tuple(results)
