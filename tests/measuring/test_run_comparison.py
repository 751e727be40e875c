"""``rescompile bench --compare``: changes beyond noise."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from rescompile.errors import UsageError
from rescompile.measuring.bench import BatchResult, BenchReport, EngineFacts
from rescompile.measuring.cold_start import Start
from rescompile.measuring.origin import Origin
from rescompile.measuring.run_comparison import Change, changed, compare_bench
from rescompile.measuring.timing import Timing
from rescompile.presenting.terminal.bench import comparison_lines
from tests.measuring.scripted import of_rounds, steady


def start(seconds: float, peak: int = 100_000_000) -> Start:
    return Start(
        process_seconds=seconds,
        load_seconds=seconds / 2,
        first_seconds=0.01,
        rss_bytes=peak,
        peak_rss_bytes=peak,
    )


def bench_report(timings: dict[int, Timing], **changes) -> BenchReport:
    """A run of the given batches with three starts of about a second."""
    engine = EngineFacts(
        directory="e", model="resnet50", precision="int8", backend="openvino", target=None, batch="1:1:8",
        input="float32 NCHW [-1, 3, 8, 8]", manifest_sha256="a" * 64, checkpoint_sha256="b" * 64, bytes=1000,
        images=300, top1=0.8, top1_agreement=0.97, relative_rms=0.03,
    )  # fmt: skip
    origin = Origin(
        date="2026-11-21T12:00:00+00:00", commit="abc", device="cpu", threads=2,
        machine={"cpu": "cpu", "cores": "2", "openvino": "1"}, settings={},
    )  # fmt: skip
    batches = tuple(
        BatchResult(batch=size, timing=found, images_per_second=1e3 * size / found.p50)
        for size, found in timings.items()
    )
    starts = (start(1.0), start(1.1), start(1.2))
    values = {
        "engine": engine,
        "origin": origin,
        "batches": batches,
        "cold": starts,
        "warm": starts,
        "notes": (),
    }
    return BenchReport(**(values | changes))


def compared(tmp_path: Path, a: BenchReport, b: BenchReport):
    for name, content in (("a.json", a), ("b.json", b)):
        (tmp_path / name).write_bytes(content.to_json())
    return compare_bench(tmp_path / "a.json", tmp_path / "b.json")


def verdicts(changes: tuple[Change, ...]) -> dict[str, str]:
    return {change.name: change.verdict for change in changes}


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (steady(10), steady(12), True),
        (steady(10), steady(8), True),
        (steady(10), steady(10, seed=1), False),
        (steady(10, noise=1e-4), steady(10.1, noise=1e-4), False),  # sure, but below 2 %
        (steady(10, noise=0.5), steady(11, noise=0.5, seed=1), False),  # the intervals overlap
        (of_rounds([10, 10, 10, 14, 14, 14]), of_rounds([15, 15, 15]), False),  # A wandered as far itself
    ],
)
def test_a_change_is_one_only_beyond_noise(a: Timing, b: Timing, expected: bool) -> None:
    assert changed(a, b) is expected
    assert changed(b, a) is expected


def test_each_figure_has_its_verdict(tmp_path: Path) -> None:
    a = bench_report({1: steady(10), 8: steady(40)})
    b = bench_report(
        {1: steady(12), 8: steady(30), 4: steady(20)},
        cold=(start(2.0), start(2.1)),
        warm=(start(1.15, 50_000_000), start(1.0, 50_000_000)),
    )
    found = verdicts(compared(tmp_path, a, b).changes)
    assert found["batch 1"] == "worse"
    assert found["batch 8"] == "better"
    assert "batch 4" not in found
    assert found["cold start"] == found["cold start: load"] == "worse"
    assert found["warm start"] == "within noise"
    assert found["warm start: memory"] == "better"
    assert found["payload"] == "within noise"


def test_a_single_start_proves_nothing(tmp_path: Path) -> None:
    a, b = (bench_report({1: steady(10)}, cold=(start(s),), warm=()) for s in (1.0, 5.0))
    found = verdicts(compared(tmp_path, a, b).changes)
    assert found["cold start"] == "within noise"
    assert "warm start" not in found


def test_what_else_differs_is_said(tmp_path: Path) -> None:
    a = bench_report(
        {1: steady(10)}, notes=("may be unstable because of X", "B may be unstable because of Y")
    )
    other = msgspec.structs.replace(a.origin, device="other", commit="def")
    b = bench_report({1: steady(10), 2: steady(11)}, origin=other, notes=("p99 is the slowest",))
    notes = compared(tmp_path, a, b).notes
    assert "device differs: cpu in A, other in B" in notes
    assert "commit differs: abc in A, def in B" in notes
    assert any("batch sizes differ" in note for note in notes)
    assert "A: may be unstable because of X (and 1 notes more in its file)" in notes
    assert not any(note.startswith("B:") for note in notes)


def test_the_table_says_how_much_changed(tmp_path: Path) -> None:
    same = bench_report({1: steady(10)})
    assert "nothing changed beyond noise" in comparison_lines(compared(tmp_path, same, same))
    slower = compared(tmp_path, same, bench_report({1: steady(20)}))
    text = comparison_lines(slower)
    assert "1 of 8 figures changed beyond noise" in text
    assert next(line for line in text if line.startswith("batch 1")).endswith("worse")


@pytest.mark.parametrize("content", [None, b"{}", b"\xff", b'{"format": "other"}'])
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.json"):
        compare_bench(path, path)
