"""Requests without waiting, from many threads, with tensors of other packages: always the answers of a plain call."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import rescompile
from rescompile.backends.base import RunOptions
from rescompile.backends.openvino.runner import OpenVinoRunner
from rescompile.backends.zero_copy import writable_view
from rescompile.errors import BackendError, EngineError, UsageError
from rescompile.runtime.engine import Engine
from rescompile.runtime.loading import load
from tests.backends.engines import make_engine, manifest
from tests.backends.graphs import CLASSES, sample_images


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small engines by backend, read-only."""
    folder = tmp_path_factory.mktemp("submitted")
    for backend in ("openvino", "onnxruntime"):
        make_engine(folder / backend, "int8", backend=backend)
    return {backend: folder / backend for backend in ("openvino", "onnxruntime")}


@pytest.mark.parametrize("hint", ["latency", "throughput"])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_submitted_requests_get_the_answers_of_a_call(
    built: dict[str, Path], backend: str, hint: Any
) -> None:
    requests = [sample_images(count, seed=count) for count in (1, 9, 2, 8, 3)]
    with rescompile.load(built[backend], hint=hint) as engine:
        expected = [engine(images) for images in requests]
        pending = [engine.submit(images) for images in requests]
        for found, wanted in zip(pending, expected, strict=True):
            np.testing.assert_array_equal(found.result(timeout=60), wanted)


@pytest.mark.parametrize("hint", ["latency", "throughput"])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_many_threads_get_their_own_answers(built: dict[str, Path], backend: str, hint: Any) -> None:
    requests = [sample_images(1 + seed % 3, seed=seed) for seed in range(40)]
    with load(built[backend], hint=hint) as engine:
        expected = [engine(images) for images in requests]
        with ThreadPoolExecutor(8) as pool:
            called = list(pool.map(engine, requests))
            submitted = [future.result() for future in pool.map(engine.submit, requests)]
    for wanted, *found in zip(expected, called, submitted, strict=True):
        for answer in found:
            np.testing.assert_array_equal(answer, wanted)


class Slow:
    """A runner that notes how many calls are inside of it, and waits until it may answer."""

    def __init__(self, parallel: int | None = None) -> None:
        if parallel is not None:
            self.parallel = parallel
        self.inside = self.most = 0
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.closed = False

    def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.entered.release()
        assert self.go.wait(120)
        with self._lock:
            self.inside -= 1
        return np.zeros((len(images), CLASSES), np.float32)

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(("parallel", "most"), [(None, 1), (3, 3)])
def test_only_concurrent_runners_are_called_at_once(parallel: int | None, most: int) -> None:
    runner = Slow(parallel)
    engine = Engine(manifest("fp32", "openvino"), runner)
    pending = [engine.submit(sample_images(1)) for _ in range(6)]
    for _ in range(most):
        assert runner.entered.acquire(timeout=120)
    assert not any(future.done() for future in pending)
    runner.go.set()
    assert all(future.result(timeout=120).shape == (1, CLASSES) for future in pending)
    assert runner.most == most


def test_closing_answers_what_was_submitted_and_takes_no_more() -> None:
    runner = Slow()
    engine = Engine(manifest("fp32", "openvino"), runner)
    pending = [engine.submit(sample_images(1)) for _ in range(3)]
    runner.go.set()
    engine.close()
    assert runner.closed
    assert all(future.done() and future.exception() is None for future in pending)
    with pytest.raises(EngineError, match="closed; load it again"):
        engine.submit(sample_images(1))
    with pytest.raises(EngineError, match="closed; load it again"):
        engine(sample_images(1))
    engine.close()


def test_images_are_refused_when_they_are_submitted(built: dict[str, Path]) -> None:
    with load(built["openvino"]) as engine, pytest.raises(UsageError, match="add the batch dimension"):
        engine.submit(sample_images(1)[0])


def test_what_goes_wrong_in_the_library_is_raised_by_the_result() -> None:
    class Broken(Slow):
        def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
            raise BackendError("it broke")

    engine = Engine(manifest("fp32", "openvino"), Broken())
    with pytest.raises(BackendError, match="it broke"):
        engine.submit(sample_images(1)).result()
    engine.close()


def test_throughput_has_several_requests_and_latency_one(built: dict[str, Path]) -> None:
    with load(built["openvino"], hint="throughput") as many, load(built["openvino"]) as one:
        assert isinstance(many._runner, OpenVinoRunner)
        assert isinstance(one._runner, OpenVinoRunner)
        advised = many._runner._first.model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        assert (many._runner.parallel, one._runner.parallel) == (advised, 1)
        assert "THROUGHPUT" in str(many._runner._first.model.get_property("PERFORMANCE_HINT"))


def test_an_unknown_hint_is_a_usage_error(built: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="the hint 'speed' is unknown; choose latency or throughput"):
        load(built["openvino"], hint="speed")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="choose latency or throughput"):
        RunOptions(hint="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["array", "read-only array", "torch tensor"])
def test_openvino_reads_the_callers_memory(built: dict[str, Path], kind: str) -> None:
    images = sample_images(4)
    with load(built["openvino"]) as engine:
        expected = engine(images)
        given: Any = torch.from_numpy(images) if kind == "torch tensor" else images
        if kind == "read-only array":
            images.flags.writeable = False
        np.testing.assert_array_equal(engine(given), expected)
        assert isinstance(engine._runner, OpenVinoRunner)
        request = engine._runner._requests.slot().resource().of(engine._runner._first)
        assert request.get_input_tensor().data.ctypes.data == images.ctypes.data


def test_a_shared_view_keeps_its_memory_alive_and_parts_are_copied() -> None:
    images = sample_images(2)
    images.flags.writeable = False
    view = writable_view(images)
    assert np.shares_memory(view, images)
    expected = images.copy()
    del images
    np.testing.assert_array_equal(view, expected)
    assert not np.shares_memory(writable_view(expected[:, :, ::2]), expected)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(1, 3, 16, 16, requires_grad=True), "torch.Tensor cannot be shared .*without gradient"),
        (torch.zeros(1, 3, 16, 16, device="meta"), "pass a tensor on the CPU"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.bfloat16), "cannot be shared"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.float64), r"images\.astype\(np\.float32\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    built: dict[str, Path], tensor: torch.Tensor, words: str
) -> None:
    with load(built["openvino"]) as engine, pytest.raises(UsageError, match=words):
        engine(tensor)


class OnGpu:
    """A tensor whose package says that it is on a GPU."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **options: Any) -> Any:
        raise AssertionError("memory that cannot be read was asked for")


class OnGpuWithoutDLPack:
    """The same, with the CUDA array interface alone."""

    __cuda_array_interface__ = {"shape": (1,), "typestr": "<f4", "data": (256, False), "version": 3}  # noqa: RUF012


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("tensor", [OnGpu(), OnGpuWithoutDLPack()])
def test_engines_on_the_cpu_refuse_what_is_on_a_gpu(
    built: dict[str, Path], backend: str, tensor: Any
) -> None:
    words = (
        rf"{type(tensor).__name__} is on a CUDA device, but this engine runs on the CPU; .*tensor\.cpu\(\)"
    )
    with load(built[backend]) as engine:
        for run in (engine, engine.submit):
            with pytest.raises(UsageError, match=words):
                run(tensor)


LIGHT = """
import sys
import numpy as np
import rescompile
with rescompile.load(sys.argv[1], hint="throughput") as engine:
    engine.submit(np.zeros((2, 3, 16, 16), np.float32)).result()
print([name for name in ("torch", "onnx", "triton", "PIL", "matplotlib") if name in sys.modules])
"""


def test_submitting_needs_neither_torch_nor_onnx_nor_triton(built: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(built["openvino"])], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.stdout) == ("", "[]\n")


def test_requests_that_may_wait_are_counted(built: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each keeps its images in memory, so a caller that never waits would fill it."""
    monkeypatch.setattr("rescompile.runtime.engine.MOST_WAITING", 3)
    with load(built["onnxruntime"]) as engine:
        with engine._lock:  # nothing is answered meanwhile
            pending = [engine.submit(sample_images(1)) for _ in range(3)]
            with pytest.raises(EngineError, match="3 requests wait already"):
                engine.submit(sample_images(1))
        for each in pending:
            each.result(timeout=60)
        for _ in range(7):  # those that are answered do not count, though their results are kept
            pending.append(engine.submit(sample_images(1)))
            pending[-1].result(timeout=60)
