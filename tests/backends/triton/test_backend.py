"""The backend from the outside: what it can do here, whole engine directories, and what is honest to say of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import fused_kernels
from benchmarks import triton_agreement
from benchmarks.agreement_results import AgreementReport
from benchmarks.performance_page import read_folder
from rescompile.accuracy.verify import verify
from rescompile.backends import get_backend
from rescompile.backends.cuda import devices
from rescompile.backends.cuda.devices import Gpu
from rescompile.backends.triton import backend
from rescompile.backends.triton.planning import assemble
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.errors import BackendUnavailable, EngineError, UsageError
from rescompile.manifest import Batch, Precision, read_manifest
from rescompile.pipeline import build
from rescompile.progress import Silent
from rescompile.report import BuildReport
from rescompile.runtime.inspection import inspect
from rescompile.runtime.integrity import read_engine
from rescompile.runtime.loading import load, simulate
from tests.backends.cuda.fake_cuda import cuda
from tests.backends.engines import make_engine
from tests.backends.triton.fake_gpu import FakeGpu
from tests.backends.triton.planned import stand_ins

H100 = Gpu("NVIDIA H100", "sm_90", "13.0")


def config(small: Path, output: Path, precision: Precision = "int8", **fields: Any) -> BuildConfig:
    return BuildConfig(
        model=ModelConfig(weights=str(small / "net.pth")),
        precision=precision,
        calibration=CalibrationConfig(images=small / "images.npz" if precision == "int8" else None),
        validation_set=small / "images.npz",
        backend="triton",
        target=fields.pop("target", "sm_90"),
        batch=fields.pop("batch", Batch(1, 2, 4)),
        output=output,
        **fields,
    )


@pytest.fixture(scope="module")
def built(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildReport]:
    """A CIFAR ResNet-20 with stand-ins for machine code; read-only."""
    folder = tmp_path_factory.mktemp("built") / "engine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "compile_variants", stand_ins)
        return folder, build(config(small, folder))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", tuple)


@pytest.fixture
def hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: (H100,))


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_builds_and_does_not_run() -> None:
    found = get_backend("triton").availability("sm_90")
    assert (found.build, found.run) == (True, False)
    assert "needs a CUDA GPU, and there is none" in found.reason


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize(
    ("target", "run", "words"),
    [
        ("sm_90", True, "NVIDIA H100 (sm_90) is here"),
        (None, True, "is here"),
        ("sm_80", False, "but it is for sm_80, and NVIDIA H100 is sm_90"),
    ],
)
def test_it_runs_on_the_gpu_that_it_was_built_for(target: str | None, run: bool, words: str) -> None:
    found = get_backend("triton").availability(target)
    assert found.run is run
    assert words in found.reason


@pytest.mark.usefixtures("no_gpu")
def test_a_target_is_needed_where_there_is_no_gpu() -> None:
    with pytest.raises(UsageError, match="pass --target, one of sm_80, sm_86"):
        get_backend("triton").check(None)


@pytest.mark.usefixtures("hopper")
def test_the_gpu_that_is_here_is_the_target_unless_told() -> None:
    get_backend("triton").check(None)


def test_an_unknown_target_is_a_usage_error_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"--target sm_91 is unknown.*Did you mean 'sm_\d0'"):
        get_backend("triton").check("sm_91")


def test_without_triton_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(BackendUnavailable, match=r"pip install '.*\[triton\]'"):
        get_backend("triton").check("sm_90")


def test_an_engine_that_was_not_executed_is_not_called_verified(built: tuple[Path, BuildReport]) -> None:
    folder, report = built
    assert report.passed
    assert not report.engine_executed
    assert report.verdict == "built, not executed here"
    assert "not a GPU" in report.measured_on
    assert any("its plan's reference executor" in note for note in report.notes)
    assert report.fused is not None
    assert (report.fused.fused, report.fused.of, report.fused.seen_in) == (9, 9, "engine")
    assert {"plan.json", "weights.safetensors", "model.onnx", "golden.npz"} <= set(
        read_manifest(folder).files
    )


def test_inspect_counts_launches_and_memory(built: tuple[Path, BuildReport]) -> None:
    plan = inspect(built[0]).plan
    assert plan is not None
    assert [(program.batch, program.launches) for program in plan.programs] == [(1, 24), (2, 24), (4, 24)]
    assert "batch 4: 24 launches" in str(plan.programs[-1])
    assert all(program.arena_bytes <= 1.3 * program.live_bytes for program in plan.programs)


@pytest.mark.usefixtures("no_gpu")
def test_loading_without_a_gpu_says_what_can_be_done(built: tuple[Path, BuildReport]) -> None:
    with pytest.raises(BackendUnavailable, match=r"for sm_90 needs a CUDA GPU.*`rescompile verify`"):
        load(built[0])


@pytest.mark.usefixtures("no_gpu")
def test_verify_executes_the_plan_and_says_so(built: tuple[Path, BuildReport], small: Path) -> None:
    report = verify(
        built[0],
        validation_set=small / "images.npz",
        validation_images=8,
        limits=None,
        reference=None,
        skip_unreadable=False,
        progress=Silent(),
    )
    assert (report.engine_executed, report.images, report.verdict) == (False, 8, "built, not executed here")
    assert "not a GPU" in report.measured_on


@pytest.mark.usefixtures("hopper")
def test_a_gpu_gives_the_executors_logits_and_a_verified_engine(
    built: tuple[Path, BuildReport], small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole network, golden self-test included; the fake GPU runs the steps, for the interpreter would take minutes."""
    simulated = simulate(read_engine(built[0]))
    assert simulated is not None
    images = np.load(built[0] / "golden.npz")["images"]
    monkeypatch.setattr(
        "rescompile.backends.triton.runner.PlanRunner", lambda *_, parallel: simulated._runner
    )
    monkeypatch.setattr(backend, "open_driver", lambda: None)
    with load(built[0]) as engine:
        np.testing.assert_array_equal(engine(images), simulated(images))


@pytest.mark.usefixtures("hopper")
def test_an_engine_for_another_gpu_is_refused(
    built: tuple[Path, BuildReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = H100._replace(name="NVIDIA A100", capability="sm_80")
    monkeypatch.setattr(devices, "gpus", lambda: (other,))
    with pytest.raises(
        BackendUnavailable, match="cannot run here: it is for sm_90, and NVIDIA A100 is sm_80"
    ):
        load(built[0])


@pytest.mark.usefixtures("hopper")
def test_the_runner_is_given_the_driver(
    built: tuple[Path, BuildReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built[0]
    manifest = read_manifest(folder)
    gpu = FakeGpu(backend.read_plan(folder, manifest))
    monkeypatch.setattr(backend, "open_driver", lambda: cuda(gpu))
    get_backend("triton").load(folder, manifest).close()
    assert gpu.detached


def test_a_backend_without_a_stand_in_has_none(tmp_path: Path) -> None:
    make_engine(tmp_path / "engine", "fp32", backend="onnxruntime")
    assert simulate(read_engine(tmp_path / "engine")) is None


def test_a_plan_that_was_changed_is_refused(built: tuple[Path, BuildReport], tmp_path: Path) -> None:
    for file in built[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "plan.json").write_bytes((tmp_path / "plan.json").read_bytes().replace(b"i8", b"u8", 1))
    with pytest.raises(EngineError, match=r"plan\.json was changed after the build"):
        simulate(read_engine(tmp_path))


@pytest.mark.slow
def test_a_real_build_is_deterministic_and_complete(small: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):  # the second takes machine code from Triton's cache
        assert build(config(small, tmp_path / name, batch=Batch(2, 2, 2))).passed
    files = [read_manifest(tmp_path / name).files for name in ("a", "b")]
    machine_code = [name for name in files[0] if name.endswith(".cubin")]
    assert {name: files[0][name] for name in machine_code} == {name: files[1][name] for name in machine_code}
    assert files[0]["plan.json"] == files[1]["plan.json"]
    assert files[0]["weights.safetensors"] == files[1]["weights.safetensors"]
    found = [(tmp_path / "a" / name).read_bytes() for name in machine_code]
    assert all(code.startswith(b"\x7fELF") for code in found)
    assert not any(str(Path(fused_kernels.__file__).parent).encode() in code for code in found)


def test_its_agreement_with_onnxruntime_is_a_raw_result(
    built: tuple[Path, BuildReport], small: Path, tmp_path: Path
) -> None:
    written = tmp_path / "results/cpu/agreement.json"
    written.parent.mkdir(parents=True)
    words = f"{built[0]} --images {small / 'images.npz'} --limit 8 --explain 1 --json {written}"
    triton_agreement.main(words.split())
    report = msgspec.json.decode(written.read_bytes(), type=AgreementReport)
    assert report.agreement.images == 8
    assert report.agreement.same_class == 1
    assert {row.tensor for row in report.tensors} >= {"relu1", "layer1.0.relu1"}
    assert all(row.largest_step <= 1 for row in report.tensors)
    read_folder(tmp_path / "results")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("ENGINE --images IMAGES --limit 0", 2, "--limit must be 1 or more"),
        ("ENGINE --images IMAGES --explain -1", 2, "--explain 0 or more"),
        ("nowhere --images IMAGES", 1, "error: nowhere is not an engine directory"),
        ("ENGINE --images nowhere", 1, "error: nowhere does not exist"),
        ("OTHER --images IMAGES", 1, "is not an engine of the backend triton"),
        ("ENGINE --images IMAGES --limit 1 --json IMAGES/x.json", 1, "part of the path is a file"),
    ],
)
def test_what_agreement_cannot_be_measured_of_is_said(
    words: str,
    code: int,
    said: str,
    built: tuple[Path, BuildReport],
    small: Path,
    small_engines: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"ENGINE": built[0], "OTHER": small_engines["int8"], "IMAGES": small / "images.npz"}
    for name, place in places.items():
        words = words.replace(name, str(place))
    with pytest.raises(SystemExit) as stopped:
        triton_agreement.main(words.split())
    assert stopped.value.code == code
    assert said in capsys.readouterr().err.splitlines()[-1]
