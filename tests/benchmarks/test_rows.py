"""Ratios between the rows of a run are by image and within one case."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.result_files import result_path
from benchmarks.rows import Results, Row, measured_targets, read_results, with_ratios
from benchmarks.table import lines
from benchmarks.targets import TARGETS
from rescompile.measuring.origin import Origin
from rescompile.measuring.timing import Timing
from tests.measuring.scripted import steady


def row(
    contender: str, p50: float | None, *, ours: bool = False, case: str = "resnet50 latency", **changes
) -> Row:
    found: Timing | None = None if p50 is None else steady(p50, noise=0)
    return Row(suite="engines", case=case, contender=contender, ours=ours, timing=found, **changes)


def results(*rows: Row) -> Results:
    origin = Origin(
        date="2026-11-21T12:00:00+00:00", commit="abc", device="A CPU (R)", threads=2,
        machine={"cores": "2"}, settings={},
    )  # fmt: skip
    done = tuple(with_ratios(rows))
    bars = measured_targets(TARGETS, done)
    return Results(
        command="pytest", seconds=60, origin=origin, roofline=None, rows=done, bars=bars, notes=("busy",)
    )


def test_ratios_are_by_image_to_the_best_peer_of_the_case() -> None:
    rows = with_ratios(
        [
            row("ours", 20.0, ours=True, batch=4),
            row("slow", 30.0),
            row("fast", 10.0),
            row("elsewhere", 1.0, case="another"),
        ]
    )
    ours, slow, fast, elsewhere = rows
    assert (ours.best_peer, ours.ratio_to_best_peer) == ("fast", 2.0)
    assert (slow.best_peer, slow.ratio_to_best_peer) == ("fast", pytest.approx(1 / 3))
    assert (fast.best_peer, fast.ratio_to_best_peer) == ("slow", 3.0)
    assert (elsewhere.best_peer, elsewhere.ratio_to_best_peer) == (None, None)


def test_ours_are_nobodys_peers_and_the_skipped_have_no_ratio() -> None:
    ours, other, gone = with_ratios(
        [row("a", 10.0, ours=True), row("b", 20.0, ours=True), row("c", None, skipped="not installed")]
    )
    assert ours.best_peer is other.best_peer is gone.best_peer is None


def test_share_of_the_roofline_is_floor_over_time() -> None:
    assert with_ratios([row("a", 10.0, floor_ms=4.0)])[0].share_of_roofline == pytest.approx(0.4)
    assert with_ratios([row("a", None, floor_ms=4.0)])[0].share_of_roofline is None


def test_bars_are_judged_where_both_sides_have_a_time() -> None:
    targets = [("n", "c", "ours", "peer", 2.0), ("m", "c", "ours", "absent", 2.0)]
    fast, missing = measured_targets(
        targets, [row("ours", 5.0, ours=True, case="c"), row("peer", 15.0, case="c")]
    )
    assert (fast.measured, fast.passed) == (3.0, True)
    assert (missing.measured, missing.passed) == (None, None)
    (slow,) = measured_targets(
        targets[:1], [row("ours", 10.0, ours=True, case="c"), row("peer", 15.0, case="c")]
    )
    assert (slow.measured, slow.passed) == (1.5, False)


def test_promises_name_cases_and_contenders_that_are_raced() -> None:
    from benchmarks.engine_races import MODES
    from benchmarks.peers import ENTRANTS

    names = {entrant.name: entrant.ours for entrant in ENTRANTS}
    for _, case, ours, peer, _ in TARGETS:
        assert case.split()[1] in MODES
        assert names[ours]
        assert not names[peer]


def test_the_document_comes_back_and_lies_by_device_date_and_commit(tmp_path: Path) -> None:
    found = results(row("ours", 5.0, ours=True), row("peer", 15.0))
    path = result_path(tmp_path, found.origin)
    assert path == tmp_path / "a-cpu-r-2-cores/2026-11-21T1200-abc.json"
    found.write(path)
    assert read_results(path) == found
    bare = msgspec.structs.replace(found.origin, device="?", machine={})
    assert result_path(tmp_path, bare).parent.name == "device"


def test_the_table_shows_ratios_skips_bars_and_notes() -> None:
    text = "\n".join(
        lines(
            results(
                row("rescompile int8", 5.0, ours=True, floor_ms=2.5, peak_rss_bytes=10**9),
                row("PyTorch eager", 15.0),
                row("ONNX Runtime int8", None, skipped="not installed"),
            )
        )
    )
    assert "3.00x" in text
    assert "50 %" in text
    assert "1.00 GB" in text
    assert "ONNX Runtime int8: skipped: not installed" in text
    assert "asked 8.00x" in text
    assert "MISSED" in text
    assert "not measured" in text
    assert "note: busy" in text
