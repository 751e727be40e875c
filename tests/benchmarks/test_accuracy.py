"""The accuracy table: what it finds to measure, and the page that it makes of raw results."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.checkpoints import Checkpoint, checkpoints
from benchmarks.accuracy.page import page
from benchmarks.accuracy.results import Accuracy, Row, read_accuracy
from rescompile.measuring.origin import Origin

ORIGIN = Origin(
    date="2026-01-02T03:04:05+00:00", commit="abc1234", device="a CPU", threads=2, machine={}, settings={}
)
ROWS = (
    Row(
        network="resnet50",
        weights="w.pth",
        contender="rescompile int8 best",
        ours=True,
        executed_by="openvino",
        calibration_images=200,
        images=300,
        top1_reference=0.8333,
        top1=0.82,
        agreement=0.98,
        relative_rms=0.0257,
        seconds=12.34,
        peak_rss_bytes=1_500_000_000,
    ),
    Row(
        network="resnet50", weights="w.pth", contender="NNCF mixed", ours=False, skipped="it is not installed"
    ),
)
RUN = Accuracy(command="python -m benchmarks.accuracy", origin=ORIGIN, rows=ROWS, notes=("a loaded machine",))


def test_every_row_of_the_raw_results_is_on_the_page(tmp_path: Path) -> None:
    text = page([(tmp_path / "raw.json", RUN)])
    assert "| **rescompile int8 best** | 82.00 % | 1.33 | 98.00 % | 0.0257 | 12.3 | 1.50 GB | 1 |" in text
    assert "| NNCF mixed | skipped: it is not installed |" in text
    assert "top-1 83.33 % of 300 images; calibrated on 200 others" in text
    assert "at commit `abc1234` on a CPU" in text
    assert "Note: a loaded machine" in text


def test_the_page_is_written_again_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RUN.write(tmp_path / "raw.json")
    assert read_accuracy(tmp_path / "raw.json") == RUN
    words = ["--page", str(tmp_path / "raw.json"), "--output", str(tmp_path / "page.md")]
    assert main(words) == 0
    assert "NNCF mixed" in (tmp_path / "page.md").read_text()
    (tmp_path / "raw.json").write_text("{}")
    assert main(words) == 1
    assert "no results of benchmarks.accuracy" in capsys.readouterr().err


def test_only_checkpoints_that_are_there_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "weights/resnet20-12fca82f.th").touch()
    (tmp_path / "weights/resnet56-4bfd9763.th").touch()
    assert checkpoints(tmp_path) == []
    (tmp_path / "cifar10/test.npz").touch()
    assert [entry.model for entry in checkpoints(tmp_path)] == ["resnet20-cifar", "resnet56-cifar"]
    monkeypatch.setenv("RESCOMPILE_DATA", str(tmp_path))
    assert main(["--networks", "resnet50"]) == 1
    assert "no checkpoint to measure" in capsys.readouterr().err


def test_several_files_make_one_table_of_each_network(tmp_path: Path) -> None:
    again = msgspec.structs.replace(ROWS[0], relative_rms=0.0123)
    triton = msgspec.structs.replace(
        ROWS[0], contender="rescompile int8 best for Triton", relative_rms=0.0111
    )
    later = msgspec.structs.replace(RUN, rows=(again, triton), notes=())
    text = page([(tmp_path / "one.json", RUN), (tmp_path / "two.json", later)])
    lines = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ") and "98.00" in line]
    assert lines == ["| **rescompile int8 best**", "| **rescompile int8 best for Triton**"]
    assert text.count("## resnet50") == 1
    assert "0.0123" in text
    assert "0.0257" not in text, "the later figure counts"
    assert text.index("for Triton**") < text.index("NNCF mixed"), "ours come first"
    assert text.count("raw results]") == 2
    assert text.count("Measured on") == 2
    numbers = {
        line.split(" | ")[0][2:]: line.rsplit("|", 2)[1].strip()
        for line in text.splitlines()
        if " | " in line
    }
    assert numbers["**rescompile int8 best**"] == "2"
    assert numbers["NNCF mixed"] == "1"
    assert "\n2. Measured on" in text


def test_some_contenders_are_measured_beside_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def built(checkpoint: Checkpoint, kind: str, folder: Path, judge: object) -> Row:
        asked.append(kind)
        return msgspec.structs.replace(ROWS[0], contender=f"rescompile {kind}")

    (tmp_path / "weights").mkdir()
    (tmp_path / "cifar10").mkdir()
    for name in ("weights/resnet20-12fca82f.th", "cifar10/test.npz"):
        (tmp_path / name).touch()
    monkeypatch.setenv("RESCOMPILE_DATA", str(tmp_path))
    monkeypatch.setattr("benchmarks.accuracy.__main__.built", built)
    words = [
        "--contenders",
        "*Triton",
        "--without-times",
        "--results",
        str(tmp_path / "r.json"),
        "--output",
        str(tmp_path / "p.md"),
    ]
    assert main(words) == 0
    assert asked == ["fp16", "int8 balanced for Triton", "int8 best for Triton"]
    written = read_accuracy(tmp_path / "r.json")
    assert [row.contender for row in written.rows] == [f"rescompile {kind}" for kind in asked]
    assert written.command.startswith("python -m benchmarks.accuracy --contenders '*Triton' --without-times ")
    assert all(row.seconds is row.peak_rss_bytes is None for row in written.rows)
    assert not written.notes


def test_contenders_that_nobody_is_like_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("weights/resnet20-12fca82f.th", "cifar10/test.npz"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    monkeypatch.setenv("RESCOMPILE_DATA", str(tmp_path))
    assert main(["--contenders", "Trito", "--results", str(tmp_path / "r.json")]) == 2
    assert "error: no contender is like 'Trito'; there are fp16, int8 fast" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()
