"""Regressions are found by ratios within a run, never by absolute times."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks import regressions as module
from benchmarks.regressions import compare_runs, lines
from benchmarks.rows import Results, Row
from tests.benchmarks.test_rows import results, row
from tests.measuring.scripted import steady

OURS, PEER, OTHER = "rescompile int8", "PyTorch eager", "ONNX Runtime int8"


def run(ours: float | None, peer: float | None, other: float | None = None, *, noise: float = 0.0) -> Results:
    rows: list[Row] = []
    for name, p50 in ((OURS, ours), (PEER, peer), (OTHER, other)):
        made = row(name, p50, ours=name == OURS, skipped=None if p50 else "not installed")
        if p50 is not None:
            made = msgspec.structs.replace(made, timing=steady(p50, noise=noise))
        rows.append(made)
    return results(*rows)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (run(10, 50), run(10, 50), "same"),
        (run(10, 50), run(30, 150), "same"),  # a machine that is three times slower
        (run(10, 50), run(12, 50), "worse"),
        (run(10, 50), run(8, 50), "better"),
        (run(10, 50), run(10.3, 50), "same"),  # within the tolerance
        (run(10, 50, noise=0.6), run(12, 50, noise=0.6), "same"),  # within the noise
        (run(10, 50), run(10, 40), "worse"),  # the peer gained and we did not
        (run(10, 50), run(None, 50), "gone"),
        (run(10, 50), run(10, None), "gone"),
    ],
)
def test_a_ratio_is_judged_and_never_a_time(before: Results, after: Results, verdict: str) -> None:
    (found,) = compare_runs(before, after, 0.05)
    assert found.verdict == verdict


def test_the_best_peer_of_both_runs_is_taken() -> None:
    (found,) = compare_runs(run(10, 50, 20), run(10, 50, None), 0.05)
    assert (found.peer, found.verdict) == (PEER, "same")
    (found,) = compare_runs(run(10, 50, 20), run(10, 50, 20), 0.05)
    assert (found.peer, found.baseline) == (OTHER, 2.0)


def test_what_is_gone_has_its_reason() -> None:
    assert compare_runs(run(10, 50), run(None, 50), 0.05)[0].reason == "not installed"
    assert compare_runs(run(10, 50), run(10, None), 0.05)[0].reason == "no peer of both runs"
    assert compare_runs(run(10, 50), results(row(PEER, 50)), 0.05)[0].reason == "it was not timed"


def test_rows_of_one_run_and_peers_are_no_ground_for_an_alarm() -> None:
    once = msgspec.structs.replace(row(OURS, 10, ours=True), timing=steady(10, rounds=1))
    assert compare_runs(results(once, row(PEER, 50)), run(20, 50), 0.05) == []
    assert compare_runs(run(None, 50), run(10, 50), 0.05) == []


def ended(*words: object) -> object:
    with pytest.raises(SystemExit) as stop:
        module.main([str(word) for word in words])
    return stop.value.code


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    run(10, 50).write(good)
    run(20, 50).write(bad)
    assert ended(good, good) == 0
    assert "none of 1 ratios is worse or gone" in capsys.readouterr().out
    assert ended(good, bad) == 1
    assert "1 of 1 ratios are worse or gone" in capsys.readouterr().out
    assert ended(good, bad, "--tolerance", "0.6") == 0
    for words in ((good, tmp_path / "none"), (good, bad, "--tolerance", "1"), (good, __file__)):
        assert ended(*words) == 2
    run(None, 50).write(good)
    assert ended(good, bad) == 2


def test_the_table_names_both_sides() -> None:
    text = lines(compare_runs(run(10, 50), run(None, 50), 0.05))
    assert "gone: not installed" in text[1]
