"""docs/performance.md holds exactly what the raw results give."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from benchmarks import performance_page
from benchmarks.accuracy.results import FORMAT as ACCURACY
from benchmarks.agreement_results import FORMAT as AGREEMENT
from benchmarks.performance_page import PAGE, PICTURE, page
from benchmarks.profile_section import profile_lines
from benchmarks.rows import RESULTS
from tests.benchmarks.test_rows import results, row
from tests.measuring.scripted import steady
from tests.measuring.test_run_comparison import bench_report
from tests.presenting.test_measurements_page import profile_report

KERNELS = {
    "schema": 1,
    "environment": {"device_name": "A GPU"},
    "ceilings": {},
    "cases": [
        {"name": "train-b32", "ours_ms": {"median": 1.5}, "ratio": {"cuDNN": 1.25}, "ratio_to_floor": 1.9},
        {"name": "bad", "ours_ms": None},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Raw results of every kind, and an older run of the same device."""
    device = tmp_path / "results/cpu"
    results(row("rescompile int8", 5.0, ours=True, floor_ms=2.5), row("PyTorch eager", 60.0)).write(
        device / "2026-11-21T1200-abc.json"
    )
    results(row("rescompile int8", 7.0, ours=True), row("PyTorch eager", 60.0)).write(
        device / "2026-11-20T1200-abc.json"
    )
    (device / "bench-r50.json").write_bytes(bench_report({1: steady(5)}).to_json())
    (device / "profile-r50.json").write_bytes(profile_report().to_json())
    (device / "accuracy.json").write_text(json.dumps({"format": ACCURACY}))
    (device / "agreement.json").write_text(json.dumps({"format": AGREEMENT}))
    (tmp_path / "results/gpu").mkdir()
    (tmp_path / "results/gpu/k.json").write_text(json.dumps(KERNELS))
    return tmp_path / "results"


def test_the_committed_page_is_what_the_committed_results_give() -> None:
    assert PAGE.read_text("utf-8") == page(RESULTS, PAGE.parent)


def test_the_readme_has_the_figures_of_the_page() -> None:
    readme = " ".join((PAGE.parents[1] / "README.md").read_text("utf-8").split())
    said = re.search(
        r"INT8 ResNet-50 answers in (.+?): ([\d.]+) times as fast as in fp32, and ([\d.]+) times", readme
    )
    assert said is not None
    row = re.search(r"\| resnet50 \| (.+?) \| ([\d.]+)x \| [^|]+ \| ([\d.]+)x \|", PAGE.read_text("utf-8"))
    assert row is not None, "the first device of the page is the README's, and its picture's"
    assert said.groups() == row.groups()


def test_every_figure_links_to_its_raw_results(folder: Path) -> None:
    text = page(folder, folder.parent)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if "benchmarks/README" not in link and not link.startswith(
            ("performance-notes.md", "glossary.md", "images/")
        ):
            assert (folder.parent / link).is_file(), link
    assert "[Raw results](results/cpu/2026-11-21T1200-abc.json)" in text
    assert text.count("](results/cpu/2026-11-21T1200-abc.json)") == 1, "once for all of its figures"
    assert "| 5 ms (" in text
    assert "[1.5000](results/gpu/k.json)" in text
    assert "12.00x PyTorch eager" in text
    assert "8.00x | 12.00x, kept" in text
    assert "wrong, so it has no time" in text


def test_the_page_opens_with_what_int8_gains(folder: Path) -> None:
    text = page(folder, folder.parent)
    opening = text[: text.index("## On a CPU")]
    assert "| 5 ms |  |  | 12.0x |  |  |" in opening
    assert "7 ms" not in opening, "the newest run counts"
    assert "What INT8 gains" not in page(folder.parent / "none", folder.parent)


def test_long_times_are_in_seconds_and_single_runs_have_no_interval(tmp_path: Path) -> None:
    once = msgspec.structs.replace(
        row("rescompile int8", 5.0, ours=True), timing=steady(12_500, rounds=1, noise=0)
    )
    results(once, row("NNCF", 2000.0)).write(tmp_path / "results/cpu/x.json")
    text = page(tmp_path / "results", tmp_path)
    assert "| 12.5 s |" in text
    assert "| 2.00 s (2.00 s to 2.00 s) |" in text


def test_the_newest_run_of_a_device_is_shown_with_its_command(folder: Path) -> None:
    text = page(folder, folder.parent)
    assert "2026-11-20" not in text
    assert "measured with `pytest`" in text


def test_what_nobody_measured_says_so(folder: Path, tmp_path: Path) -> None:
    assert page(folder, tmp_path).count("not measured yet") > 5, "no engine was measured on a GPU"
    empty = page(tmp_path / "none", tmp_path)
    assert not re.search(r"\d x\b|\[\d", empty)
    for command in ("pytest benchmarks/ --benchmark-only", "python -m benchmarks.gpu_suite"):
        assert command in empty


def test_a_profile_has_its_blocks_times_and_floors_side_by_side(folder: Path) -> None:
    text = page(folder, folder.parent)
    report = profile_report()
    fp32, int8 = (engine.blocks[0] for engine in report.engines)
    assert (
        "| block | fp32 ms | fp32 floor ms | fp32 x floor | int8 ms | int8 floor ms | int8 x floor |" in text
    )
    cells = [f"{b.ms:.3f} | {b.floor_ms:.3f} | {b.ms / b.floor_ms:.1f}" for b in (fp32, int8)]
    assert f"| stem | {' | '.join(cells)} |" in text
    assert "A call takes 6 ms in fp32, 3 ms in int8." in text
    assert "- F.\n- N.\n" in text


def test_a_block_without_work_has_no_ratio_to_its_floor() -> None:
    report = profile_report()
    idle = [
        msgspec.structs.replace(
            engine, blocks=(msgspec.structs.replace(b, memory_ms=0.0, arithmetic_ms=0.0),)
        )
        for engine in report.engines
        for b in engine.blocks[:1]
    ]
    text = "\n".join(profile_lines(msgspec.structs.replace(report, engines=tuple(idle)), "x.json"))
    assert "| stem | 1.000 | 0.000 |  | 0.500 | 0.000 |  |" in text


def test_a_file_that_is_no_result_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "cpu/x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"x\.json is not a raw result"):
        page(folder, tmp_path)
    with pytest.raises(SystemExit, match=r"x\.json is not a raw result"):
        performance_page.main(["--results", str(folder), "--output", str(tmp_path / "p.md")])


def test_the_command_writes_and_checks(folder: Path, tmp_path: Path) -> None:
    words = ["--results", str(folder), "--output", str(tmp_path / "p.md")]
    with pytest.raises(SystemExit, match="run this without --check"):
        performance_page.main([*words, "--check"])
    performance_page.main(words)
    with pytest.raises(SystemExit) as stop:
        performance_page.main([*words, "--check"])
    assert stop.value.code == 0


@pytest.mark.parametrize("case", ["resnet50 latency", "resnet18 latency"])
def test_resnet50_is_drawn_where_it_was_timed(case: str, tmp_path: Path) -> None:
    timed = results(row("rescompile int8", 5.0, ours=True, case=case), row("PyTorch eager", 60.0, case=case))
    timed.write(tmp_path / "cpu/2026-11-21T1200-abc.json")
    performance_page.main(["--results", str(tmp_path), "--output", str(tmp_path / "p.md")])
    drawn = case == "resnet50 latency"
    assert (f"]({PICTURE.as_posix()})" in (tmp_path / "p.md").read_text("utf-8")) == drawn
    assert (tmp_path / PICTURE).is_file() == drawn
