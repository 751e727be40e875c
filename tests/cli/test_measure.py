"""The commands that measure, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from rescompile.measuring.profile_report import ProfileReport
from tests.backends.engines import make_engine
from tests.commands import sent
from tests.measuring.scripted import steady
from tests.measuring.test_profile import RATES
from tests.measuring.test_run_comparison import bench_report
from tests.reports import report

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rescompile.building.engine_directory import write_hashed_manifest
    from rescompile.manifest import read_manifest

    folder = tmp_path_factory.mktemp("measured") / "e"
    make_engine(folder)
    (folder / "report.json").write_bytes(report().to_json())
    write_hashed_manifest(folder, read_manifest(folder))
    return folder


def test_bench_prints_a_table_and_writes_what_compare_reads(engine, tmp_path) -> None:
    path = tmp_path / "a.json"
    words = ("bench", engine, "--batch", "1,4", "--seconds", "0.05", "--starts", "0")
    code, out, _ = sent(*words, "--output", path)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["1", "4"]
    code, out, _ = sent("bench", "--compare", path, path)
    assert (code, "nothing changed beyond noise" in out) == (0, True)


def test_bench_prints_json(engine) -> None:
    words = ("bench", engine, "--batch", "2", "--seconds", "0.05", "--starts", "0", "--json")
    code, out, _ = sent(*words)
    assert code == 0
    assert json.loads(out)["batches"][0]["batch"] == 2


def test_compare_prints_json(tmp_path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(bench_report({1: steady(10)}).to_json())
    code, out, _ = sent("bench", "--compare", path, path, "--json")
    assert code == 0
    assert json.loads(out)["changes"][0]["verdict"] == "within noise"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "pass an engine directory to measure, or --compare"),
        (("x", "--compare", "a", "b"), 2, "and not both"),
        (("x", "--seconds", "0"), 2, "--seconds 0 is not a time"),
        (("x", "--seconds", "nan"), 2, "--seconds nan is not a time"),
        (("x", "--seconds", "inf"), 2, "--seconds inf is not a time"),
        (("x", "--batch", "1,two"), 2, "write whole numbers"),
        (("x", "--output", "none/x.json"), 1, "none is not a folder"),
        (("x", "--output", "."), 1, "is a folder"),
        (("--compare", "a.json", "b.json"), 2, "a.json cannot be read"),
        (("no-such-engine",), 1, "not an engine directory"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(words, code, said, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = sent("bench", *words)
    assert (found, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


def test_profile_prints_a_table_and_writes_json(small_engines, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("rescompile.measuring.profile.measure_roofline", lambda threads: RATES)
    path = tmp_path / "p.json"
    words = ("profile", small_engines["int8"], "--seconds", "0.05", "--threads", "1", "--output", path)
    code, out, _ = sent(*words)
    assert code == 0
    assert "bound by" in out
    found = msgspec.json.decode(path.read_bytes(), type=ProfileReport)
    assert found.engines[0].engine.precision == "int8"
    monkeypatch.setattr("rescompile.measuring.profile.profile", lambda directories, **rest: found)
    code, out, _ = sent("profile", "x", "--json")
    assert (code, json.loads(out)["batch"]) == (0, 1)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "Missing argument"),
        (("x", "--seconds", "-1"), 2, "not a time"),
        (("x", "--output", "none/x.json"), 1, "none is not a folder"),
        (("no-such-engine",), 1, "not an engine directory"),
    ],
)
def test_what_cannot_be_profiled_is_one_sentence(words, code, said, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = sent("profile", *words)
    assert (found, out) == (code, "")
    assert said in err


def test_report_writes_the_page_and_its_plots(tmp_path) -> None:
    path, page, plots = tmp_path / "a.json", tmp_path / "m.html", tmp_path / "made/plots"
    path.write_bytes(bench_report({1: steady(10), 2: steady(15)}).to_json())
    code, out, _ = sent("report", path, "--output", page, "--plots", plots)
    assert code == 0
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert [line.rpartition("/")[2] for line in out.split()] == [
        "m.html", "throughput.png", "latency.png", "accuracy.png",
    ]  # fmt: skip
    assert {file.name for file in plots.iterdir()} == {"throughput.png", "latency.png", "accuracy.png"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "Missing argument"),
        (("none.json",), 2, "none.json cannot be read"),
        (("x", "--output", "none/x.html"), 1, "none is not a folder"),
    ],
)
def test_what_cannot_be_reported_is_one_sentence(words, code, said, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found, out, err = sent("report", *words)
    assert (found, out) == (code, "")
    assert said in err
