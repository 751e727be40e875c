"""``calibrate --compare``: the tables and the plot of all methods."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from calibration.methods.comparison import Comparison, compare_methods
from calibration.methods.quantization_risks import Risk
from rescompile.building.calibrate import calibrate
from rescompile.building.method_notes import notes_on_risks
from rescompile.building.source import Source
from rescompile.config import RECIPES, CalibrationConfig, Effort
from rescompile.presenting.plots.calibration_methods import methods_by_tensor
from rescompile.presenting.terminal.calibrate import comparison_lines as lines
from rescompile.progress import Silent
from tests.calibration.statistics.histograms import histogram_of
from tests.commands import succeeds


@pytest.fixture(scope="module")
def by_logits(small: Path, small_source: Source) -> Comparison:
    made = calibrate(small_source, CalibrationConfig(images=small / "images.npz", limit=8), Silent())
    assert made.comparison is not None
    return made.comparison


@pytest.fixture(scope="module")
def by_sqnr(small: Path, small_source: Source) -> Comparison:
    config = CalibrationConfig(images=small / "images.npz", limit=8, effort="fast")
    made = calibrate(small_source, config, Silent())
    assert made.comparison is not None
    return made.comparison


def test_logit_is_expected_to_cost_the_least(by_logits: Comparison) -> None:
    assert min(by_logits.together, key=lambda name: by_logits.together[name]) == "logit"
    for results in by_logits.tensors.values():
        known = [entry.logits_rms for entry in results.values() if entry.logits_rms is not None]
        assert results["logit"].logits_rms == pytest.approx(min(known), rel=0.05)
    parts = [entry["max"].logits_rms or 0 for entry in by_logits.tensors.values()]
    assert by_logits.together["max"] == pytest.approx(np.sqrt(np.square(parts).sum()))


def test_both_tables_name_every_tensor_and_mark_the_method(
    by_logits: Comparison, by_sqnr: Comparison
) -> None:
    for comparison, method, title in ((by_logits, "logit", "relative RMS"), (by_sqnr, "mse", "SQNR")):
        text = "\n".join(lines(comparison, method))
        assert text.count(f"{method}*") == 2
        assert text.count("layer3.2.relu ") == 2
        assert title in text
    assert "all together" in "\n".join(lines(by_logits, "logit"))


def test_a_dead_tensor_is_a_dash_and_can_be_drawn() -> None:
    histograms = {"dead": histogram_of(np.zeros(4)), "live": histogram_of(np.arange(5.0))}
    thresholds = {"dead": {"max": 0.0}, "live": {"max": 4.0}}
    comparison = compare_methods(histograms, thresholds)
    assert any(line.split() == ["dead", "-"] for line in lines(comparison, "max"))
    assert methods_by_tensor(comparison).svg().startswith("<svg ")


def test_the_plot_has_a_line_for_every_method(
    by_logits: Comparison, by_sqnr: Comparison, tmp_path: Path
) -> None:
    for comparison in (by_logits, by_sqnr):
        svg = methods_by_tensor(comparison).svg()
        shown = [
            "".join(node.itertext()).strip()
            for node in ET.fromstring(svg).iter()
            if node.tag.endswith("text")
        ]
        for method in next(iter(comparison.tensors.values())):
            assert any(word.split(": ")[0] == method for word in shown) or ":" in method
        assert svg == methods_by_tensor(comparison).svg()
    methods_by_tensor(by_sqnr).write(tmp_path / "a.PNG")
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("json", [False, True])
def test_the_command_prints_and_draws_the_comparison(
    json: bool,
    small: Path,
    tmp_path: Path,
) -> None:
    words = ["--weights", small / "net.pth", "--calibration-set", small / "images.npz", "--effort", "fast"]
    words += ["--calibration-images", 4, "--compare", "--plot", tmp_path / "p.svg"]
    words += ["--output", tmp_path / "t.json", *["--json"] * json]
    printed = succeeds("calibrate", *words)
    assert (tmp_path / "p.svg").is_file()
    assert (tmp_path / "t.json").is_file()
    if json:
        assert msgspec.json.decode(printed, type=Comparison).tensors["flatten"]["mse"].sqnr_db
    else:
        assert "mse*" in printed
        assert "21 scales by mse" in printed


def test_every_risk_is_told_with_what_was_done_or_can_be() -> None:
    kinds = ("heavy-tailed weights", "outlier activations", "dead channels")
    found = tuple(Risk(kind, "fc", f"{kind} in fc") for kind in kinds)  # type: ignore[arg-type]
    fast, best = notes_on_risks(found, RECIPES["fast"]), notes_on_risks(found, RECIPES["best"])
    assert "--effort best rounds" in fast[0]
    assert "--effort balanced equalizes" in fast[1]
    assert "--rounding learned" in best[0]
    assert "are equalized" in best[1]
    assert fast[2] == best[2]


@pytest.mark.parametrize(("effort", "learned"), [(None, True), ("balanced", False), ("best", True)])
def test_heavy_weights_are_rounded_against_each_other_unless_the_user_chose(
    effort: Effort | None,
    learned: bool,
    small: Path,
    small_source: Source,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "rescompile.building.calibrate.SMALL", 1_000
    )  # of small networks rounding is always learned
    graph = onnx.ModelProto()
    graph.CopyFrom(small_source.graph)
    entry = next(entry for entry in graph.graph.initializer if entry.name == "layer2.1.conv1.weight")
    weight = numpy_helper.to_array(entry).copy()
    weight[0, 0, 0, 0] *= 3000
    entry.CopyFrom(numpy_helper.from_array(weight, entry.name))
    config = CalibrationConfig(images=small / "images.npz", limit=4, effort=effort)
    made = calibrate(replace(small_source, graph=graph), config, Silent())
    assert (made.recipe.rounding == "learned") == learned
    assert bool(made.samples) == learned
    (note,) = [note for note in made.notes if "heavy-tailed weights in 1 layer" in note]
    assert ("they are rounded against each other" in note) == learned
