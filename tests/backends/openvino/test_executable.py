"""An INT8 engine has the form of a kind of CPU, and is never executed where that form would saturate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest

import rescompile
from rescompile.backends.base import RunOptions
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.openvino.backend import OpenVino
from rescompile.backends.openvino.runner import OpenVinoTensors
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.errors import BackendUnavailable, UsageError
from rescompile.graph.shared.metadata import offsets_of
from rescompile.manifest import Batch, CpuForm, Manifest, read_manifest
from rescompile.metrics import relative_rms
from tests.backends.cpu.test_lowering import one_conv
from tests.backends.engines import manifest, request
from tests.backends.graphs import residual_net, sample_images, saved

DETECTION = "rescompile.backends.cpu.forms"


def described(form: CpuForm | None) -> Manifest:
    return msgspec.structs.replace(manifest("int8", "openvino"), cpu_form=form)


def built(folder: Path, form: CpuForm = "vnni") -> Path:
    OpenVino(form).build(request(saved(residual_net("int8", channels=32), folder), "int8"), folder)
    return folder


def test_all_256_values_cost_nothing_where_sums_have_32_bits() -> None:
    assert OpenVino("avx2").int8.full_range == "costs"
    assert OpenVino("vnni").int8.full_range == OpenVino().in_form("amx").int8.full_range == "free"


def test_the_machines_form_is_the_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(f"{DETECTION}.machine_form", lambda: "amx")
    payload = OpenVino().build(request(saved(residual_net("int8"), tmp_path), "int8"), tmp_path)
    assert payload.cpu_form == "amx"
    assert any(note.startswith("CPU form amx (what this CPU computes fastest)") for note in payload.notes)
    assert OpenVino().build(request(saved(residual_net("fp32"), tmp_path), "fp32"), tmp_path).cpu_form is None


def test_a_cpu_that_is_not_exact_runs_the_engine_lowered_anew(tmp_path: Path) -> None:
    folder = built(tmp_path)
    expected = reference_session(folder / "model.onnx", optimize=False)(sample_images(8))
    with pytest.warns(
        UserWarning, match=r"has the form vnni, .*: it runs in the form avx2, .*--cpu-form avx2"
    ):
        runner = OpenVino().load(folder, described("vnni"))
    assert relative_rms(expected, runner(sample_images(8))) < 5e-3
    with pytest.warns(UserWarning, match="has the form vnni"):
        tensors = OpenVinoTensors(folder, described("vnni"), ["layer1.0.relu1"])
    assert tensors.clipped == {"layer1.0.relu1"}


def test_what_was_lowered_anew_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESCOMPILE_ENGINE_CACHE")
    (tmp_path / "engine").mkdir()
    folder, options = built(tmp_path / "engine"), RunOptions(cache=tmp_path / "cache")
    with pytest.warns(UserWarning, match="has the form vnni"):
        first = OpenVino().load(folder, described("vnni"), options)
    first.cache_compilation()

    def refuse(*_: object) -> None:
        raise AssertionError("it was lowered again")

    with monkeypatch.context() as patched:
        patched.setattr("rescompile.backends.cpu.lowering.lower", refuse)
        with pytest.warns(UserWarning, match="has the form vnni"):
            again = OpenVino().load(folder, described("vnni"), options)
    np.testing.assert_array_equal(first(sample_images(2)), again(sample_images(2)))


@pytest.mark.parametrize("form", [None, "avx2"])
def test_engines_of_the_oldest_form_run_as_they_are(tmp_path: Path, form: CpuForm | None) -> None:
    folder = built(tmp_path, "avx2")
    (folder / "model.onnx").unlink()
    assert OpenVino().load(folder, described(form))(sample_images(1)).shape == (1, 10)


def test_a_machine_with_vnni_runs_the_payload_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = built(tmp_path)
    (folder / "model.onnx").unlink()
    monkeypatch.setattr(f"{DETECTION}.machine_form", lambda: "vnni")
    assert OpenVino().load(folder, described("amx"))(sample_images(1)).shape == (1, 10)


def test_without_the_onnx_tools_the_error_says_what_to_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built(tmp_path)
    monkeypatch.setattr(
        "rescompile.backends.openvino.executable.installed", lambda name: name != "onnx_graphsurgeon"
    )
    with pytest.raises(
        BackendUnavailable, match=r"form vnni, which this CPU .*; build with --cpu-form avx2, or"
    ):
        OpenVino().load(folder, described("vnni"))


def test_wide_grouped_weights_cannot_be_lowered_anew(tmp_path: Path) -> None:
    model = one_conv(np.full((4, 1, 1, 1), 100, np.int8), group=4, relu=True, zero_point=-128)
    onnx.save(model, tmp_path / "model.onnx")
    asked = replace(request(tmp_path / "model.onnx", "int8"), image_shape=(4, 4, 4))
    OpenVino("vnni").build(asked, tmp_path)
    with pytest.raises(BackendUnavailable, match=r"'conv' is a grouped .*; build with --cpu-form avx2"):
        OpenVino().load(tmp_path, described("vnni"))


def test_the_form_is_asked_of_cpus_and_int8_alone(small: Path, tmp_path: Path) -> None:
    model = ModelConfig(weights=str(small / "net.pth"))
    with pytest.raises(UsageError, match="--cpu-form belongs to int8 engines"):
        BuildConfig(model=model, precision="fp32", cpu_form="vnni")
    with pytest.raises(UsageError, match="--cpu-form sse is unknown; choose one of avx2, vnni, amx"):
        BuildConfig(model=model, cpu_form="sse")  # type: ignore[arg-type]
    config = BuildConfig(
        model=model, cpu_form="vnni", backend="triton", target="sm_90", output=tmp_path / "engine",
        calibration=CalibrationConfig(images=small / "images.npz"),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"--cpu-form vnni belongs to engines for CPUs, .* triton"):
        rescompile.build(config)


@pytest.mark.filterwarnings("ignore:.*has the form vnni")
def test_a_build_for_another_cpu_is_verified_here(small: Path, tmp_path: Path) -> None:
    config = BuildConfig(
        model=ModelConfig(weights=str(small / "net.pth")), cpu_form="vnni", backend="openvino",
        calibration=CalibrationConfig(images=small / "images.npz", limit=8, effort="fast"),
        validation_set=small / "images.npz", batch=Batch(1, 1, 4), output=tmp_path / "engine",
    )  # fmt: skip
    report = rescompile.build(config)
    assert report.engine_executed
    assert any(note.startswith("CPU form vnni (as asked)") for note in report.notes)
    made = read_manifest(tmp_path / "engine")
    assert made.cpu_form == "vnni"
    assert offsets_of(onnx.load(tmp_path / "engine/model.onnx")), (
        "all 256 values are used where that costs nothing"
    )
