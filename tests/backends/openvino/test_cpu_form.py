"""An INT8 engine has the form of a kind of CPU, and is never executed where that form would saturate."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

import rescompile
from rescompile.backends.base import RunOptions
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.openvino import cpu_form
from rescompile.backends.openvino.backend import OpenVino
from rescompile.backends.openvino.lowering import lower
from rescompile.backends.openvino.runner import OpenVinoTensors
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.errors import BackendUnavailable, UsageError
from rescompile.graph.shared.metadata import offsets_of
from rescompile.manifest import Batch, CpuForm, Manifest, read_manifest
from rescompile.metrics import relative_rms
from tests.backends.engines import manifest, request
from tests.backends.graphs import residual_net, sample_images, saved
from tests.backends.openvino.test_lowering import constants, one_conv
from tests.graph.conftest import images as images_of
from tests.graph.conftest import int8

DETECTION = "rescompile.backends.openvino.cpu_form"
PRINT_FORM = "from rescompile.backends.openvino.cpu_form import machine_form; print(machine_form())"


def run(model: onnx.ModelProto, images: NDArray[Any]) -> NDArray[Any]:
    return reference_session(model.SerializeToString(), optimize=False)(images)


def described(form: CpuForm | None) -> Manifest:
    return msgspec.structs.replace(manifest("int8", "openvino"), cpu_form=form)


def built(folder: Path, form: CpuForm = "vnni") -> Path:
    OpenVino(form).build(request(saved(residual_net("int8", channels=32), folder), "int8"), folder)
    return folder


def test_flags_are_those_of_linux(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nflags\t\t: fpu avx2 avx512_vnni\nvmx flags : vnmi\n")
    assert cpu_form.flags_of(path) == {"fpu", "avx2", "avx512_vnni"}
    assert cpu_form.flags_of(tmp_path / "missing") == set()


@pytest.mark.parametrize(
    ("flags", "exact", "form"),
    [
        ({"avx2"}, True, "avx2"),
        ({"avx2", "avx_vnni"}, True, "avx2"),
        ({"avx512_vnni"}, False, "avx2"),
        ({"avx512_vnni"}, True, "vnni"),
        ({"avx512_vnni", "amx_int8"}, True, "amx"),
        ({"avx512_vnni", "amx_int8"}, False, "avx2"),
    ],
)
def test_the_form_needs_both_the_instructions_and_exact_sums(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], exact: bool, form: CpuForm
) -> None:
    monkeypatch.setattr(f"{DETECTION}.flags_of", lambda _: flags)
    monkeypatch.setattr(f"{DETECTION}._adds_in_32_bits", lambda: exact)
    assert cpu_form.detected() == form


@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE"])
def test_a_cpu_that_may_not_use_its_vnni_has_the_form_of_one_without(limit: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PRINT_FORM], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": limit},
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("avx2\n", "")


@pytest.mark.parametrize("form", ["vnni", "amx"])
@pytest.mark.parametrize("case", ["signed", "full range", "half range"])
def test_integers_are_those_of_the_graph_without_more_channels(case: str, form: CpuForm) -> None:
    random = np.random.default_rng(0)
    weight = random.integers(-128, 128, (4, 3, 3, 3)).astype(np.int8)
    full = case == "full range"
    model = one_conv(weight, relu=case != "signed", zero_point=-128 if full else 0)
    lowered = lower(model, form)
    images = random.uniform(-160, 300, (2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(lowered, images), run(model, images))
    kinds = {node.op_type for node in lowered.graph.node}
    assert "Concat" not in kinds
    assert ("Clip" in kinds) == (case == "half range")
    assert constants(lowered)["w"].shape == weight.shape


def test_a_network_answers_as_before() -> None:
    model, images = int8("resnet18"), images_of("resnet18")
    lowered = lower(model, "vnni")
    onnx.checker.check_model(lowered, full_check=True)
    assert relative_rms(run(model, images), run(lowered, images)) < 1e-3


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
    with warnings.catch_warnings():
        warnings.simplefilter("error")
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
    monkeypatch.setattr(f"{DETECTION}.installed", lambda name: name != "onnx_graphsurgeon")
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
