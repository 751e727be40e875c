"""Real TensorRT for RTX engines, built on the CPU; and real TensorRT where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rescompile.backends.cuda.devices import gpus
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.tensorrt.backend import full, rtx
from rescompile.errors import BackendError, UsageError
from rescompile.graph.image_sizes import with_open_sizes
from rescompile.manifest import Batch, Precision
from rescompile.metrics import relative_rms
from rescompile.optional import installed
from tests.backends.engines import manifest, request
from tests.backends.graphs import RESIDUAL_ADDS, residual_net, sample_images, saved

needs_rtx = pytest.mark.skipif(not installed("tensorrt_rtx"), reason="TensorRT for RTX is not installed")
needs_tensorrt = pytest.mark.skipif(
    not (installed("tensorrt") and gpus()), reason="TensorRT needs its library and a CUDA GPU"
)
TARGETS = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121"]


@needs_rtx
@pytest.mark.parametrize("target", [*TARGETS, None])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_engines_build_for_every_target_without_a_gpu(
    tmp_path: Path, target: str | None, precision: Precision
) -> None:
    path = saved(residual_net(precision, rest=np.float16), tmp_path)
    payload = rtx().build(request(path, precision, target=target), tmp_path)
    assert payload.target == target
    assert (tmp_path / "model.engine").stat().st_size > 50_000


@needs_rtx
@pytest.mark.parametrize("batch", [Batch(1, 1, 1), Batch(1, 8, 32), Batch(4, 4, 4)])
def test_fixed_batches_and_ranges_build(tmp_path: Path, batch: Batch) -> None:
    path = saved(residual_net("int8", rest=np.float16), tmp_path)
    rtx().build(request(path, "int8", batch, target="sm_89"), tmp_path)
    assert (tmp_path / "model.engine").exists()


@needs_rtx
def test_ranges_of_heights_and_widths_build(tmp_path: Path) -> None:
    path = saved(with_open_sizes(residual_net("int8", rest=np.float16)), tmp_path)
    bounds = ((3, 8, 8), (3, 24, 32))
    rtx().build(replace(request(path, "int8", Batch(1, 2, 4), target="sm_89"), bounds=bounds), tmp_path)
    assert (tmp_path / "model.engine").exists()


@needs_rtx
def test_engines_differ_by_target(tmp_path: Path) -> None:
    path = saved(residual_net("fp16"), tmp_path)
    engines = set()
    for target in TARGETS:
        rtx().build(request(path, "fp16", target=target), tmp_path)
        engines.add((tmp_path / "model.engine").read_bytes())
    assert len(engines) >= 3


@needs_rtx
def test_the_library_knows_the_targets_that_we_promise() -> None:
    for target in TARGETS:
        rtx().check(target)
    with pytest.raises(UsageError, match="has no sm_90"):
        rtx().check("sm_90")


@needs_rtx
def test_a_real_progress_monitor_runs_from_nothing_to_all(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    asked = request(saved(residual_net("fp32"), tmp_path), "fp32", target="sm_89")
    rtx().build(replace(asked, progress=lambda done, total: seen.append((done, total))), tmp_path)
    done = [each for each, _ in seen]
    assert done == sorted(done)
    assert seen[-1] == (1000, 1000)
    assert len(seen) > 10


@needs_rtx
def test_an_interrupt_cancels_a_real_build(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    asked = request(saved(residual_net("fp32"), tmp_path), "fp32", target="sm_89")
    with pytest.raises(KeyboardInterrupt):
        rtx().build(replace(asked, progress=interrupt), tmp_path)
    assert not (tmp_path / "model.engine").exists()


@needs_rtx
def test_a_graph_that_the_parser_refuses_names_the_node(tmp_path: Path) -> None:
    model = residual_net("int8")
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "relu_zero")
    zero.raw_data = b"\x03"
    path = saved(model, tmp_path)
    with pytest.raises(
        BackendError, match=r"node 'relu_quantized' \(QuantizeLinear\): .*shiftIsAllZeros"
    ) as caught:
        rtx().build(request(path, "int8", target="sm_89"), tmp_path)
    assert "\n" not in str(caught.value)


@needs_rtx
def test_an_image_size_that_is_not_the_graphs_is_refused(tmp_path: Path) -> None:
    asked = request(saved(residual_net("fp32"), tmp_path), "fp32", target="sm_89")
    with pytest.raises(BackendError, match=r"cannot build the engine: .*[Dd]imension"):
        rtx().build(replace(asked, image_shape=(3, 15, 15)), tmp_path)


@needs_tensorrt
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_real_tensorrt_engine_answers_as_the_reference(tmp_path: Path, precision: Precision) -> None:
    path = saved(residual_net(precision, rest=np.float16), tmp_path)
    payload = full().build(request(path, precision), tmp_path)
    described = manifest(precision, "tensorrt")
    runner = full().load(tmp_path, described)
    expected = reference_session(path, optimize=False)(sample_images(8))
    assert (
        relative_rms(expected, runner(sample_images(8)))
        < {"fp32": 1e-3, "fp16": 2e-2, "int8": 5e-2}[precision]
    )
    assert payload.fused_adds in (None, RESIDUAL_ADDS)
    runner.close()
