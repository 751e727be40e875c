"""The page of the suites' results, and its command."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import msgspec
import pytest

from benchmarks import suite_page
from benchmarks.suite_page import plots_of, render_suites
from benchmarks.suite_results import Results
from tests.benchmarks.test_rows import results, row
from tests.presenting.test_report_page import Page


def run(**changes) -> Results:
    made = results(
        row("rescompile int8", 5.0, ours=True, floor_ms=2.5),
        row("PyTorch eager", 60.0),
        row("ONNX Runtime int8", None, skipped="not installed"),
    )
    return msgspec.structs.replace(made, **changes)


def test_every_figure_of_a_run_is_on_the_page() -> None:
    text = Page(render_suites([run()])).text
    for part in ("1 of 1 targets met", "engines: resnet50 latency", "12.00x", "50 %", "8.00x", "not measured",
                 "ONNX Runtime int8: not installed", "busy", "pytest", "abc"):  # fmt: skip
        assert part in text, part
    assert all(plot.caption in text for plot in plots_of([run()]))


def test_a_run_without_targets_has_a_headline_too() -> None:
    assert '">Measured<' in render_suites([run(bars=())])


def test_plots_of_two_runs_have_names_of_their_own() -> None:
    plots = plots_of([run(), run()])
    assert [plot.name for plot in plots] == ["suite-1-resnet50-latency", "suite-2-resnet50-latency"]
    assert ET.fromstring(plots[0].svg()).tag == "{http://www.w3.org/2000/svg}svg"


def test_text_from_outside_stays_text() -> None:
    evil = "<script>alert(1)</script>"
    made = results(row(evil, 5.0, ours=True, case=evil), row("b", None, skipped=evil))
    assert "script" not in Page(render_suites([made])).tags


def test_the_command_writes_page_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run().write(tmp_path / "r.json")
    page, plots = tmp_path / "p.html", tmp_path / "made/plots"
    suite_page.main([str(tmp_path / "r.json"), "--output", str(page), "--plots", str(plots)])
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert [path.name for path in plots.iterdir()] == ["suite-1-resnet50-latency.png"]


@pytest.mark.parametrize(
    ("name", "output", "said"),
    [
        ("r.json", "none/p.html", "none"),
        ("bad.json", "p.html", "is not a result of the suites"),
        ("gone.json", "p.html", "is not a result of the suites"),
    ],
)
def test_a_mistake_is_one_sentence(name: str, output: str, said: str, tmp_path: Path) -> None:
    run().write(tmp_path / "r.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(SystemExit, match=said):
        suite_page.main([str(tmp_path / name), "--output", str(tmp_path / output)])
