"""The fewest blocks that meet the limits stay in FP16; the validation images do not influence their order."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import rescompile
from calibration.images.archive import ArchiveImages
from calibration.images.files import ImageFiles
from rescompile.cli import app
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.errors import UsageError
from rescompile.manifest import read_manifest
from rescompile.progress import Silent
from rescompile.report import BuildReport, Limits, StageRecord
from tests.accuracy.damage import classifier, with_outlier, write_sets

DAMAGED = "layer3.0"
BUDGET = Limits(min_agreement=0.9, max_top1_drop=10.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``net.pth``, of which one block has an outlier channel, and the image sets."""
    folder = tmp_path_factory.mktemp("mixed")
    write_sets(folder)
    torch.save(with_outlier(classifier(), DAMAGED, channel=5), folder / "net.pth")
    return folder


def config(folder: Path, output: str, **changes: Any) -> BuildConfig:
    base = BuildConfig(
        model=ModelConfig(weights=str(folder / "net.pth")),
        calibration=CalibrationConfig(images=folder / "calibration.npz", effort="fast"),
        validation_set=folder / "validation.npz",
        limits=BUDGET,
        backend="openvino",
        output=folder / output,
        force=True,
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def kept(folder: Path) -> BuildReport:
    """A budget that the damaged network keeps with a block in FP16."""
    return rescompile.build(config(folder, "kept"))


def test_the_damaged_block_is_found_kept_in_fp16_and_the_budget_is_met(
    folder: Path, kept: BuildReport
) -> None:
    assert kept.verdict == "verified"
    assert kept.fp16_blocks == read_manifest(folder / "kept").fp16_blocks == (DAMAGED,)
    assert kept.reformats == 3
    assert kept.lint.violations == ()
    assert any(f"1 of 8 blocks stay in FP16: {DAMAGED}" in note for note in kept.notes)
    assert max(kept.damages, key=lambda entry: entry.relative_rms).block == DAMAGED


def test_the_frontier_holds_what_was_measured_from_all_fp16_to_all_int8(kept: BuildReport) -> None:
    first, last = kept.frontier[0], kept.frontier[-1]
    assert (first.int8_blocks, first.reformats, first.passed) == (0, 0, True)
    assert (last.int8_blocks, last.reformats, last.passed, last.fp16_blocks) == (8, 1, False, ())
    (taken,) = (point for point in kept.frontier if point.fp16_blocks == kept.fp16_blocks)
    assert (taken.int8_blocks, taken.reformats, taken.passed) == (7, 3, True)
    assert taken.top1_agreement == kept.top1_agreement
    assert taken.top1_drop == pytest.approx(100 * (kept.top1_reference - kept.top1_engine))  # type: ignore[operator]
    assert taken.relative_rms == pytest.approx(kept.relative_rms, rel=1e-3)


def test_the_engine_is_built_once_more_and_every_stage_is_recorded(kept: BuildReport) -> None:
    again = ["build again", "golden again", "verify again"]
    first = ["load", "calibrate", "quantize", "build", "golden", "verify", "budget"]
    assert [stage.name for stage in kept.stages] == [*first, *again, "report"]


def test_equalization_repairs_the_same_damage_without_any_block_in_fp16(folder: Path) -> None:
    balanced = CalibrationConfig(images=folder / "calibration.npz", effort="balanced")
    report = rescompile.build(config(folder, "balanced", calibration=balanced))
    assert report
    assert (report.fp16_blocks, report.frontier, report.reformats) == ((), (), 1)


def test_a_budget_that_nothing_keeps_fails_with_the_best_that_was_found(folder: Path) -> None:
    impossible = Limits(min_agreement=0.9, max_relative_rms=1e-9)
    report = rescompile.build(config(folder, "impossible", limits=impossible, fp16_blocks="auto"))
    assert not report
    assert report.engine_directory.endswith("impossible.failed")
    assert any("cannot be kept even with all 8 blocks in FP16" in note for note in report.notes)
    assert report.relative_rms == min(point.relative_rms for point in report.frontier)
    assert len(report.fp16_blocks) == 8


def test_blocks_can_be_named_by_hand_in_any_order(folder: Path) -> None:
    report = rescompile.build(config(folder, "named", fp16_blocks=("fc", DAMAGED, "stem")))
    assert report
    assert report.fp16_blocks == ("stem", DAMAGED, "fc")
    assert (report.reformats, report.frontier) == (4, ())


def test_tensorrt_rtx_takes_a_graph_with_blocks_in_fp16(folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="the extra tensorrt-rtx is not installed")
    made = config(folder, "rtx", backend="tensorrt-rtx", target="sm_89", validation_images=4, limits=None)
    report = rescompile.build(replace(made, fp16_blocks=(DAMAGED,)))
    assert (report.fp16_blocks, report.reformats, report.lint.violations) == ((DAMAGED,), 3, ())
    weights = {
        entry.name: entry.data_type for entry in onnx.load(folder / "rtx/model.onnx").graph.initializer
    }
    assert weights[f"{DAMAGED}.conv1.weight"] == onnx.TensorProto.FLOAT16
    assert weights["layer3.1.conv1.weight.int8"] == onnx.TensorProto.INT8


def test_a_block_that_the_network_lacks_is_refused_with_a_hint(folder: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no such block; its blocks are stem, layer1.0, .*Did you mean 'stem'"
    ):
        rescompile.build(config(folder, "e", fp16_blocks=("stern",)))
    assert not (folder / "e").exists()


def test_another_validation_set_with_wrong_labels_changes_no_byte_of_table_graph_or_order(
    folder: Path, kept: BuildReport
) -> None:
    other = config(
        folder, "other", validation_set=folder / "mislabelled.npz", limits=Limits(min_agreement=0.9)
    )
    report = rescompile.build(other)
    assert report.image_fingerprint != kept.image_fingerprint
    assert report.top1_reference < kept.top1_reference - 0.2  # type: ignore[operator]
    assert report.damages == kept.damages
    for file in ("model.onnx", "calibration.json"):
        assert (folder / "other" / file).read_bytes() == (folder / "kept" / file).read_bytes()


def test_every_command_of_the_how_to_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/accuracy-budget.md").read_text("utf-8")
    commands = re.findall(r"^rescompile .*", page, re.MULTILINE)
    monkeypatch.chdir(folder)
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as stop:
            app.main()
        assert stop.value.code == 0, command
    assert read_manifest(folder / "net-int8").fp16_blocks == (DAMAGED,)
    assert read_manifest(folder / "net-mixed").fp16_blocks == ("stem", DAMAGED)
    assert f"most sensitive: {DAMAGED}" in (folder / "damage.svg").read_text()


class Reads(Silent):
    """Which files were read in which stage."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.stage = "before"
        self.found: set[tuple[str, str]] = set()
        for source in (ArchiveImages, ImageFiles):
            for method in ("decoders", "contents"):
                patch.setattr(source, method, self.watched(getattr(source, method)))

    def watched(self, method: Any) -> Any:
        def read(images: Any) -> Iterator[Any]:
            for item in method(images):
                path = images.path if isinstance(images, ArchiveImages) else images.root
                self.found.add((self.stage, path.name))
                yield item

        return read

    def of(self, name: str) -> set[str]:
        return {stage for stage, path in self.found if path == name}

    def stage_started(self, name: str) -> None:
        self.stage = name

    def stage_finished(self, record: StageRecord) -> None:
        self.stage = "between"


def test_validation_images_are_read_only_to_judge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    calibration = CalibrationConfig(images=folder / "calibration.npz", effort="best", limit=8)
    asked = {"limits": Limits(max_relative_rms=1e-9), "fp16_blocks": "auto"}  # a search, even for this effort
    rescompile.build(config(folder, "read", calibration=calibration, validation_images=20, **asked), reads)
    assert reads.of("validation.npz") == {"verify", "budget", "verify again", "report"}
    assert reads.of("calibration.npz") == {"calibrate", "budget"}
