"""TensorRT's builder is asked for what the request says, and its refusals become sentences (no library, no GPU)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import onnx
import pytest

from rescompile.backends.base import BuildRequest
from rescompile.backends.cuda import devices
from rescompile.backends.cuda.devices import Gpu
from rescompile.backends.tensorrt import backend
from rescompile.backends.tensorrt.backend import TensorRt, full, rtx, rtx_targets
from rescompile.errors import BackendError, BackendUnavailable, UsageError
from rescompile.manifest import Batch, Precision
from tests.backends.engines import manifest, request
from tests.backends.graphs import IMAGE_SHAPE, residual_net, saved
from tests.backends.tensorrt.fake_trt import (
    BuilderFlag,
    ComputeCapability,
    FakeTrt,
    MemoryPoolType,
    ParserError,
    ProfilingVerbosity,
    Severity,
)

L4 = Gpu("NVIDIA L4", "sm_89", "13.0")
H100 = Gpu("NVIDIA H100", "sm_90", "13.0")


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTrt:
    """A full TensorRT on a machine with an L4."""
    return pretend(monkeypatch, FakeTrt(), L4)


def pretend(monkeypatch: pytest.MonkeyPatch, trt: FakeTrt, *gpus: Gpu) -> FakeTrt:
    monkeypatch.setattr(backend, "require", lambda module, purpose: trt)
    monkeypatch.setattr(devices, "gpus", lambda: gpus)
    return trt


@pytest.fixture
def asked(tmp_path: Path) -> BuildRequest:
    return request(saved(residual_net("fp32"), tmp_path), "fp32")


@pytest.mark.parametrize(("version", "flags"), [("10.13.2", 1), ("11.1.0", 0)])
def test_networks_are_strongly_typed(
    monkeypatch: pytest.MonkeyPatch, asked: BuildRequest, version: str, flags: int
) -> None:
    trt = pretend(monkeypatch, FakeTrt(version), L4)
    full().build(asked, asked.model.parent)
    assert trt.asked.network_flags == flags


def test_a_batch_range_becomes_an_optimization_profile(trt: FakeTrt, asked: BuildRequest) -> None:
    full().build(replace(asked, batch=Batch(2, 5, 7)), asked.model.parent)
    assert trt.asked.profile == {"images": tuple((size, *IMAGE_SHAPE) for size in (2, 5, 7))}


def test_a_fixed_batch_fixes_the_input_and_needs_no_profile(trt: FakeTrt, asked: BuildRequest) -> None:
    full().build(replace(asked, batch=Batch(8, 8, 8)), asked.model.parent)
    assert trt.images.shape == (8, *IMAGE_SHAPE)
    assert trt.asked.profile == {}


def test_the_profile_uses_the_graphs_own_layout(trt: FakeTrt, asked: BuildRequest) -> None:
    full().build(replace(asked, image_shape=(16, 16, 3)), asked.model.parent)
    assert trt.asked.profile["images"][2] == (8, 16, 16, 3)


def test_a_profile_that_does_not_fit_is_refused(trt: FakeTrt, asked: BuildRequest) -> None:
    trt.profile_index = -1
    with pytest.raises(BackendError, match=r"images from \[1, 3, 16, 16\] to \[8, 3, 16, 16\] do not fit"):
        full().build(asked, asked.model.parent)


def test_the_builder_may_neither_use_tf32_nor_take_the_whole_gpu(trt: FakeTrt, asked: BuildRequest) -> None:
    full().build(asked, asked.model.parent)
    assert BuilderFlag.TF32 not in trt.asked.flags
    assert trt.asked.limits == {MemoryPoolType.WORKSPACE: 2**30}
    assert trt.config.profiling_verbosity == ProfilingVerbosity.DETAILED


def test_the_engine_lands_in_one_file_for_the_gpu_that_is_there(trt: FakeTrt, asked: BuildRequest) -> None:
    payload = full().build(asked, asked.model.parent)
    assert payload.files == ("model.engine",)
    assert (asked.model.parent / "model.engine").read_bytes() == b"engine"
    assert payload.target == "sm_89"


def test_parser_errors_name_their_nodes_in_one_sentence(trt: FakeTrt, asked: BuildRequest) -> None:
    trt.errors = [
        ParserError("layer1.0.add", "Add", "shapes\n  differ"),
        ParserError("fc", "Gemm", "no kernel"),
    ]
    expected = r"node 'layer1\.0\.add' \(Add\): shapes differ; node 'fc' \(Gemm\): no kernel$"
    with pytest.raises(BackendError, match=expected):
        full().build(asked, asked.model.parent)


def test_builder_errors_are_told_once_each(trt: FakeTrt, asked: BuildRequest) -> None:
    trt.engine = None
    trt.messages = [(Severity.ERROR, "out of memory"), (Severity.INTERNAL_ERROR, "out of memory")]
    with pytest.raises(BackendError, match=r"cannot build the engine: out of memory$"):
        full().build(asked, asked.model.parent)
    trt.messages = []
    with pytest.raises(BackendError, match="it gave no reason"):
        full().build(asked, asked.model.parent)
    assert not (asked.model.parent / "model.engine").exists()


def test_warnings_become_a_few_notes(trt: FakeTrt, asked: BuildRequest) -> None:
    trt.messages = [(Severity.WARNING, f"warning {number % 5}") for number in range(20)]
    trt.messages += [(Severity.INFO, "chatter")]
    notes = full().build(asked, asked.model.parent).notes
    assert notes == (*(f"tensorrt: warning {n}" for n in range(3)), "tensorrt: 2 more warnings")


def test_progress_is_passed_on(trt: FakeTrt, asked: BuildRequest) -> None:
    trt.steps = [("start", "build", 2), ("step", "build", 0), ("step", "build", 1), ("finish", "build", 0)]
    seen: list[tuple[int, int]] = []
    full().build(replace(asked, progress=lambda done, total: seen.append((done, total))), asked.model.parent)
    assert seen == [(500, 1000), (1000, 1000)]


def test_an_interrupt_in_the_progress_display_ends_the_build(trt: FakeTrt, asked: BuildRequest) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    trt.steps = [("start", "build", 2), ("step", "build", 0), ("step", "build", 1)]
    with pytest.raises(KeyboardInterrupt):
        full().build(replace(asked, progress=interrupt), asked.model.parent)


def test_timings_are_kept_and_used_again(trt: FakeTrt, asked: BuildRequest, tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    for expected in (b"+timings", b"+timings+timings"):
        payload = full().build(replace(asked, timing_cache=cache), tmp_path)
        assert cache.read_bytes() == expected
        assert payload.notes == ()


@pytest.mark.parametrize("content", [b"garbage", b"other gpu"])
def test_timings_of_another_gpu_are_left_unused(
    trt: FakeTrt, asked: BuildRequest, tmp_path: Path, content: bytes
) -> None:
    cache = tmp_path / "timings"
    cache.write_bytes(content)
    payload = full().build(replace(asked, timing_cache=cache), tmp_path)
    assert "timing began anew" in payload.notes[0]
    assert cache.read_bytes() == b"+timings"


def test_layers_are_inspected_where_the_engine_can_be_loaded(trt: FakeTrt, asked: BuildRequest) -> None:
    trt.layers = '{"Layers": [{"Name": "layer1.0.conv2 + layer1.0.add", "Inputs": []}]}'
    assert full().build(asked, asked.model.parent).fused_adds == 1


def test_rtx_does_not_inspect_an_engine_for_another_gpu(
    monkeypatch: pytest.MonkeyPatch, asked: BuildRequest
) -> None:
    trt = pretend(monkeypatch, FakeTrt("1.7.1", "tensorrt_rtx"), L4)
    trt.layers = '{"Layers": [{"Name": "layer1.0.conv2 + layer1.0.add", "Inputs": []}]}'
    found = {
        target: rtx().build(replace(asked, target=target), asked.model.parent).fused_adds
        for target in (None, "sm_89", "sm_120")
    }
    assert found == {None: 1, "sm_89": 1, "sm_120": None}


def test_rtx_sets_the_one_target_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: BuildRequest
) -> None:
    trt = pretend(monkeypatch, FakeTrt("1.7.1", "tensorrt_rtx"))
    payload = rtx().build(replace(asked, target="sm_120"), asked.model.parent)
    assert trt.asked.capabilities == {0: ComputeCapability.SM120}
    assert trt.config.num_compute_capabilities == 1
    assert payload.target == "sm_120"
    trt.accepts_target = False
    with pytest.raises(BackendError, match="refuses the target sm_120"):
        rtx().build(replace(asked, target="sm_120"), asked.model.parent)


def test_rtx_without_a_target_says_what_the_engine_is_for(
    monkeypatch: pytest.MonkeyPatch, asked: BuildRequest
) -> None:
    trt = pretend(monkeypatch, FakeTrt("1.7.1", "tensorrt_rtx"))
    payload = rtx().build(asked, asked.model.parent)
    assert trt.asked.capabilities == {}
    assert payload.target is None
    assert "8.0, 8.6, 8.9, 12.0 and later" in payload.notes[0]


@pytest.mark.parametrize(("precision", "operation"), [("fp32", "Conv"), ("fp16", "Gemm")])
def test_only_fp32_for_turing_gets_a_convolution_as_classifier(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: Precision, operation: str
) -> None:
    trt = pretend(monkeypatch, FakeTrt("1.7.1", "tensorrt_rtx"))
    path = saved(residual_net(precision), tmp_path)
    rtx().build(request(path, precision, target="sm_75"), tmp_path)
    nodes = onnx.load_from_string(trt.asked.model).graph.node
    classifier = next(node for node in nodes if "fc.bias" in node.input)
    assert classifier.op_type == operation


def test_targets_are_listed_in_order() -> None:
    assert rtx_targets(FakeTrt()) == ["sm_75", "sm_80", "sm_86", "sm_89", "sm_120"]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("sm_8", r"--target sm_8 is unknown.*sm_75, sm_80.*Did you mean 'sm_8"),
        ("ada", "--target ada is unknown"),
        ("sm_90", r"has no sm_90 \(H100, H200.*--backend tensorrt"),
        ("sm_100", r"has no sm_100 \(B200"),
    ],
)
def test_an_unknown_rtx_target_is_a_usage_error(
    monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    pretend(monkeypatch, FakeTrt("1.7.1", "tensorrt_rtx"))
    with pytest.raises(UsageError, match=words):
        rtx().check(target)


def test_full_tensorrt_builds_for_the_present_gpu_only(trt: FakeTrt) -> None:
    full().check("sm_89")
    with pytest.raises(
        UsageError, match=r"--target sm_86 is not the GPU of this machine \(NVIDIA L4, sm_89\)"
    ):
        full().check("sm_86")


def test_full_tensorrt_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, FakeTrt())
    with pytest.raises(BackendUnavailable, match=r"needs a CUDA GPU.*--backend openvino"):
        full().check(None)
    found = full().availability()
    assert (found.build, found.run) == (False, False)
    assert "there is none" in found.reason


@pytest.mark.parametrize("version", ["10.11.0", "8.6.1"])
def test_an_old_tensorrt_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    pretend(monkeypatch, FakeTrt(version), L4)
    with pytest.raises(BackendUnavailable, match=r"too old.*10\.12"):
        full().check(None)


def test_a_missing_library_is_told_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TensorRt("tensorrt_of_nowhere")
    found = backend.availability()
    assert (found.build, found.run) == (False, False)
    assert "tensorrt_of_nowhere" in found.reason
    assert "pip install" in found.reason


@pytest.mark.parametrize(
    ("backend", "gpu", "target", "words"),
    [
        (full, L4, None, "NVIDIA L4 (sm_89) are here"),
        (full, H100, None, "NVIDIA H100 (sm_90) are here"),
        (rtx, L4, "sm_89", "NVIDIA L4 (sm_89) are here"),
        (rtx, L4, "sm_120", "it is for sm_120, and NVIDIA L4 is sm_89"),
        (rtx, H100, None, "does not run on sm_90"),
    ],
)
def test_whether_an_engine_would_run_here(
    monkeypatch: pytest.MonkeyPatch, backend: Callable[[], TensorRt], gpu: Gpu, target: str | None, words: str
) -> None:
    pretend(monkeypatch, FakeTrt(), gpu)
    found = backend().availability(target)
    assert (found.build, found.run) == (True, words.endswith("are here"))
    assert words in found.reason


def test_an_engine_for_another_gpu_is_not_loaded(trt: FakeTrt, tmp_path: Path) -> None:
    described = manifest("fp32", "tensorrt")
    foreign = msgspec.structs.replace(described, target="sm_86")
    with pytest.raises(BackendUnavailable, match=r"cannot run here: it is for sm_86.*build it for this GPU"):
        full().load(tmp_path, foreign)


@pytest.mark.parametrize("backend", [full, rtx])
def test_everything_but_fp32_is_typed_fp16_on_the_gpu(backend: Callable[[], TensorRt]) -> None:
    assert [backend().rest_type(p) for p in ("fp32", "fp16", "int8")] == ["float32", "float16", "float16"]
