"""Small builds of every kind, and the contents of their engine directories."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import rescompile
from calibration.errors import TableError
from calibration.images import open_image_set
from calibration.preprocess import CIFAR, normalize
from rescompile.backends import BACKENDS, get_backend
from rescompile.building import verdict
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig, PreprocessOptions
from rescompile.errors import LintError, OutputError
from rescompile.manifest import Batch, read_manifest
from rescompile.presenting.html.report_page import render
from rescompile.report import BuildReport, Limits

CONTRACT = {
    "manifest.json": "format model depth precision backend target batch inputs outputs preprocess checkpoint "
    "calibration files environment",
    "report.json": "passed engine_executed images top1_reference top1_engine top1_agreement relative_rms cosine "
    "max_abs limits lint fused stages environment",
}
LENIENT = Limits(max_relative_rms=0.5)


def config(small: Path, output: Path, **changes: object) -> BuildConfig:
    base = BuildConfig(
        model=ModelConfig(weights=str(small / "net.pth")),
        calibration=CalibrationConfig(images=small / "images.npz", rounding="nearest"),
        validation_set=small / "images.npz",
        limits=LENIENT,
        backend="openvino",
        output=output,
    )
    if changes.get("precision") in ("fp32", "fp16"):
        base = replace(base, precision="fp32", calibration=CalibrationConfig())
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def built(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildReport]:
    folder = tmp_path_factory.mktemp("built") / "engine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdict, "render", render)
        return folder, rescompile.build(config(small, folder))


def test_a_build_writes_what_the_contract_says(built: tuple[Path, BuildReport]) -> None:
    folder, report = built
    for file, fields in CONTRACT.items():
        assert set(fields.split()) <= set(json.loads((folder / file).read_text()))
    assert report
    assert report.verdict == "verified"
    texts = {"README.md", "calibration.json", "manifest.json", "report.html", "report.json"}
    payload = {"model.xml", "model.bin"}
    assert {path.name for path in folder.iterdir()} == texts | payload | {
        "golden.npz",
        "model.onnx",
        "reference.onnx",
    }


def test_the_report_tells_each_stage_with_its_seconds_and_memory(built: tuple[Path, BuildReport]) -> None:
    names = [stage.name for stage in built[1].stages]
    assert names == ["load", "calibrate", "quantize", "build", "golden", "verify", "report"]
    assert all(stage.seconds > 0 and stage.peak_rss_bytes > 1e6 for stage in built[1].stages)


def test_every_residual_add_is_fused_and_every_block_has_an_error(built: tuple[Path, BuildReport]) -> None:
    report = built[1]
    assert report.fused is not None
    assert (report.fused.fused, report.fused.of, report.fused.seen_in) == (9, 9, "engine")
    assert [block.block for block in report.blocks][:2] == ["stem", "layer1.0"]
    assert len(report.blocks) == 11
    assert report.lint.violations == ()
    shown = {entry.tensor for entry in report.ranges}
    assert shown >= {"relu1", "layer3.2.relu", "flatten"}
    assert "input" not in shown, "its pixels are exact, so no threshold of the table quantizes them"


def test_weights_that_meet_signed_inputs_have_seven_bits_where_the_backend_pays(
    built: tuple[Path, BuildReport],
) -> None:
    tensors = onnx.load(built[0] / "model.onnx").graph.initializer
    held = {each.name: numpy_helper.to_array(each) for each in tensors}
    assert np.abs(held["conv1.weight.int8"].astype(int)).max() == 63
    assert np.abs(held["layer1.0.conv1.weight.int8"].astype(int)).max() == 127
    paying = {name for name in BACKENDS if get_backend(name).int8.full_range == "costs"}
    assert paying == {"openvino", "onnxruntime"}


def test_a_loaded_engine_gives_the_logits_that_were_judged(
    small: Path, built: tuple[Path, BuildReport]
) -> None:
    folder, report = built
    images = open_image_set(small / "images.npz")
    (batch,) = images.batches(CIFAR, 24)
    with rescompile.load(folder) as engine:
        logits = engine(normalize(batch.images, CIFAR))
    assert batch.labels is not None
    assert (logits.argmax(1) == batch.labels).mean() == report.top1_engine
    assert report.images == 24


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_float_engines_follow_the_reference(
    small: Path, tmp_path: Path, precision: str, backend: str
) -> None:
    report = rescompile.build(
        config(small, tmp_path / "e", precision=precision, backend=backend, limits=None)
    )
    assert report
    assert report.relative_rms is not None
    assert report.relative_rms < (1e-5 if precision == "fp32" else 5e-3)
    assert report.fused is None


def test_int8_on_onnx_runtime_equals_int8_on_openvino(
    small: Path, tmp_path: Path, built: tuple[Path, BuildReport]
) -> None:
    rescompile.build(config(small, tmp_path / "e", backend="onnxruntime"))
    for name in (
        "model.onnx",
        "golden.npz",
        "calibration.json",
        "reference.onnx",
    ):  # the same inputs, the same bytes
        assert (tmp_path / "e" / name).read_bytes() == (built[0] / name).read_bytes(), name
    x = np.random.default_rng(0).standard_normal((8, 3, 32, 32), dtype=np.float32)
    with rescompile.load(tmp_path / "e") as reference, rescompile.load(built[0]) as engine:
        expected, found = reference(x), engine(x)
    assert np.linalg.norm(found - expected) <= 2e-2 * np.linalg.norm(expected)


def test_an_engine_that_takes_pixels(small: Path, tmp_path: Path, built: tuple[Path, BuildReport]) -> None:
    report = rescompile.build(config(small, tmp_path / "e", input_format="uint8-nhwc"))
    assert report
    (batch,) = open_image_set(small / "images.npz").batches(CIFAR, 24)
    with rescompile.load(tmp_path / "e") as engine, rescompile.load(built[0]) as other:
        assert engine.manifest.inputs[0].dtype == "uint8"
        found, expected = engine(batch.images), other(normalize(batch.images, CIFAR))
    assert np.linalg.norm(found - expected) <= 5e-2 * np.linalg.norm(expected)


def test_a_fixed_batch_answers_any_number_of_images_and_the_reference_can_be_left_out(
    small: Path, tmp_path: Path
) -> None:
    rescompile.build(
        config(small, tmp_path / "e", precision="fp32", batch=Batch(4, 4, 4), keep_reference=False)
    )
    assert not (tmp_path / "e/reference.onnx").exists()
    assert read_manifest(tmp_path / "e").inputs[0].shape == (4, 3, 32, 32)
    x = np.random.default_rng(0).standard_normal((5, 3, 32, 32), dtype=np.float32)
    with rescompile.load(tmp_path / "e") as engine:
        assert np.allclose(engine(x)[4], engine(x[4:])[0], atol=1e-5)


def test_imagenet_networks_and_other_sizes(tmp_path: Path) -> None:
    model = ModelConfig(depth=18, weights="random", preprocess=PreprocessOptions(crop=64))
    report = rescompile.build(
        BuildConfig(
            model=model,
            calibration=CalibrationConfig(effort="fast", limit=8),
            backend="openvino",
            output=tmp_path / "e",
            validation_images=8,
        )
    )
    assert report.verdict == "built, not judged"
    assert any("the weights are random" in note for note in report.notes)
    assert any("built-in photographs" in note for note in report.notes)
    manifest = read_manifest(tmp_path / "e")
    assert (manifest.preprocess.crop, manifest.preprocess.resize) == (64, 73)
    assert manifest.classes[0] == "tench"


def test_rtx_engines_are_built_and_not_called_verified(small: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed (extra tensorrt-rtx)")
    report = rescompile.build(config(small, tmp_path / "e", backend="tensorrt-rtx", target="sm_89"))
    assert report
    assert report.verdict == "built, not executed here"
    assert not report.engine_executed
    assert report.measured_on == "deployable graph (onnxruntime)"
    assert report.target == read_manifest(tmp_path / "e").target == "sm_89"
    types = {t.data_type for t in onnx.load(tmp_path / "e/model.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT not in types


def test_a_table_gives_the_same_graph_as_its_images(
    small: Path, tmp_path: Path, built: tuple[Path, BuildReport]
) -> None:
    table = CalibrationConfig(table=built[0] / "calibration.json")
    rescompile.build(config(small, tmp_path / "e", calibration=table))
    for name in ("model.onnx", "golden.npz", "calibration.json"):
        assert (tmp_path / "e" / name).read_bytes() == (built[0] / name).read_bytes()


def test_another_method_from_the_same_table_runs_no_image(
    small: Path, tmp_path: Path, built: tuple[Path, BuildReport]
) -> None:
    table = CalibrationConfig(table=built[0] / "calibration.json", method="max")
    rescompile.build(config(small, tmp_path / "e", calibration=table))
    assert (tmp_path / "e/model.onnx").read_bytes() != (built[0] / "model.onnx").read_bytes()
    calibration = read_manifest(tmp_path / "e").calibration
    assert calibration is not None
    assert calibration.method == "max"


def test_a_table_for_other_preprocessing_is_refused(
    small: Path, tmp_path: Path, built: tuple[Path, BuildReport]
) -> None:
    other = ModelConfig(weights=str(small / "net.pth"), preprocess=PreprocessOptions(mean=(0.5, 0.5, 0.5)))
    table = CalibrationConfig(table=built[0] / "calibration.json")
    with pytest.raises(TableError, match="preprocess"):
        rescompile.build(config(small, tmp_path / "e", model=other, calibration=table))
    assert not (tmp_path / "e").exists()


def test_an_onnx_file_gives_the_same_engine_as_its_checkpoint(
    small: Path, tmp_path: Path, built: tuple[Path, BuildReport]
) -> None:
    model = ModelConfig(onnx=built[0] / "reference.onnx")
    rescompile.build(config(small, tmp_path / "e", model=model))
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32)
    with rescompile.load(tmp_path / "e") as engine, rescompile.load(built[0]) as other:
        assert engine.manifest.model == "resnet20-cifar"
        assert np.allclose(engine(x), other(x), atol=1e-4)


def test_an_engine_that_fails_is_kept_aside_with_its_report(small: Path, tmp_path: Path) -> None:
    strict = config(small, tmp_path / "e", precision="fp32", limits=Limits(max_relative_rms=1e-12))
    for _ in range(2):  # the second one replaces what the first one left
        report = rescompile.build(strict)
        assert not report
        assert report.verdict == "failed"
        assert [path.name for path in tmp_path.iterdir()] == ["e.failed"]
        assert not json.loads((tmp_path / "e.failed/report.json").read_text())["passed"]


def test_an_engine_that_exists_is_replaced_only_when_told(small: Path, tmp_path: Path) -> None:
    fp32 = config(small, tmp_path / "e", precision="fp32")
    rescompile.build(fp32)
    with pytest.raises(OutputError, match="--force"):
        rescompile.build(fp32)
    assert rescompile.build(replace(fp32, force=True))


def test_a_graph_that_breaks_the_contract_is_never_built(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rescompile.building import quantize

    monkeypatch.setattr(quantize, "insert_quantizers", lambda graph, scales, **options: graph)
    with pytest.raises(
        LintError, match=r"breaks the fusion contract: \[inputs-quantized\] .*'conv1'.* more\)"
    ):
        rescompile.build(config(small, tmp_path / "e"))
    assert not list(tmp_path.iterdir())


def test_names_of_classes_come_from_the_user(
    small: Path, tmp_path: Path, built: tuple[Path, BuildReport]
) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"kind {n}" for n in range(10)))
    model = ModelConfig(weights=str(small / "net.pth"), classes=tmp_path / "names.txt")
    rescompile.build(config(small, tmp_path / "e", precision="fp32", model=model))
    assert read_manifest(tmp_path / "e").classes[3] == "kind 3"
    assert read_manifest(built[0]).classes[3] == "class 3"
