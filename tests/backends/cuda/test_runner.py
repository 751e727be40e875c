"""Requests on a GPU run side by side and never see each other's memory; whatever fails gives everything back."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rescompile.backends.base import RunOptions
from rescompile.backends.tensorrt.runner import TensorRtRunner
from rescompile.errors import BackendError, EngineError
from rescompile.manifest import Batch
from rescompile.runtime.engine import Engine
from tests.backends.cuda import fake_cuda
from tests.backends.cuda.fake_cuda import ELSEWHERE, FakeCuda, Through, cuda
from tests.backends.engines import manifest
from tests.backends.graphs import CLASSES, sample_images
from tests.backends.tensorrt.fake_trt import FakeNetwork

BATCH = Batch(2, 4, 8)
THROUGH: list[Through] = ["pycuda", "ctypes"]


def load(gpu: FakeCuda, parallel: int = 1, through: Through = "pycuda") -> Engine:
    described = manifest("fp32", "tensorrt", BATCH)
    trt = FakeNetwork(gpu, CLASSES)
    return Engine(described, TensorRtRunner(trt, cuda(gpu, through), b"", described, parallel=parallel))


def logits(images: NDArray[Any]) -> NDArray[np.float32]:
    sums: NDArray[np.float32] = images.reshape(len(images), -1).sum(axis=1, keepdims=True)
    return sums + np.arange(CLASSES, dtype=np.float32)


def agree(found: NDArray[Any], images: NDArray[Any]) -> bool:
    return bool(np.allclose(found, logits(images), rtol=1e-4, atol=1e-3))


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("parallel", [1, 3])
def test_submitted_requests_get_their_own_answers(parallel: int, through: Through) -> None:
    gpu = FakeCuda()
    requests = [sample_images(1 + seed % 10, seed=seed) for seed in range(30)]
    with load(gpu, parallel, through) as engine:
        pending = [engine.submit(images) for images in requests]
        for future, images in zip(pending, requests, strict=True):
            assert agree(future.result(timeout=120), images)
    assert gpu.nothing_left()


@pytest.mark.parametrize("parallel", [1, 3])
def test_many_threads_may_call_and_submit(parallel: int) -> None:
    gpu = FakeCuda()
    requests = [sample_images(2 + seed % 3, seed=seed) for seed in range(60)]
    with load(gpu, parallel) as engine, ThreadPoolExecutor(8) as pool:
        called = list(pool.map(engine, requests))
        submitted = [future.result(timeout=120) for future in pool.map(engine.submit, requests)]
    for found in (called, submitted):
        assert all(agree(answer, images) for answer, images in zip(found, requests, strict=True))
    assert gpu.nothing_left()


def test_as_many_are_on_the_gpu_at_once_as_there_are_slots_and_the_caller_does_not_wait() -> None:
    gpu = FakeCuda()
    requests = [sample_images(2, seed=seed) for seed in range(5)]
    engine = load(gpu, 2)
    go, there = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        there.release()
        assert go.wait(120)

    gpu.at_synchronize = wait
    pending = [engine.submit(images) for images in requests]  # returns, although nothing is done
    assert all(there.acquire(timeout=120) for _ in range(2))
    assert len(list(gpu.pending())) == 2
    assert not there.acquire(timeout=0.05)  # the third waits for a slot
    assert not any(future.done() for future in pending)
    go.set()
    assert all(agree(future.result(timeout=120), x) for future, x in zip(pending, requests, strict=True))
    engine.close()


def test_closing_finishes_the_calls_that_run_and_refuses_those_that_wait() -> None:
    gpu, images = FakeCuda(), sample_images(2)
    engine: Any = load(gpu)
    run = engine._runner
    go, there = threading.Event(), threading.Event()

    def wait() -> None:
        there.set()
        assert go.wait(120)

    gpu.at_synchronize = wait
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(run, images)
        assert there.wait(120)
        waiting = pool.submit(run, images)
        closing = [pool.submit(run.close) for _ in range(2)]
        done, _ = wait_for((running, *closing), timeout=0.05)
        assert not done
        go.set()
        assert agree(running.result(timeout=120), images)
        for future in closing:
            future.result(timeout=120)
        # it may have come before the end, as the closing threads start when they like
        assert isinstance(waiting.exception(timeout=120), BackendError | None)
    assert gpu.nothing_left()


def test_closing_answers_what_was_submitted() -> None:
    gpu, images = FakeCuda(), sample_images(3)
    engine = load(gpu, 2)
    pending = [engine.submit(images) for _ in range(6)]
    engine.close()
    assert all(agree(future.result(timeout=0), images) for future in pending)
    with pytest.raises(EngineError, match="closed"):
        engine.submit(images)
    assert gpu.nothing_left()


def test_memory_is_taken_once_for_every_slot() -> None:
    gpu = FakeCuda()
    image, answer = 3 * 16 * 16 * 4, CLASSES * 4
    with load(gpu, 3) as engine:
        expected = [8 * image, max(8 * answer, 256)] * 3
        assert [len(memory.content) for memory in gpu.memory] == expected
        assert [len(locked.content) for locked in gpu.locked] == [8 * image, 8 * answer] * 3
        room = gpu.room
        for future in [engine.submit(sample_images(count)) for count in (1, 8, 20)]:
            future.result(timeout=120)
        assert gpu.room == room


def test_memory_of_others_is_cleared_before_the_first_call() -> None:
    gpu = FakeCuda()
    with load(gpu, 2):
        assert not any(memory.content.any() for memory in gpu.memory)


@pytest.mark.parametrize("through", THROUGH)
def test_the_context_is_current_only_during_a_call(through: Through) -> None:
    gpu = FakeCuda()
    gpu.stack.append(ELSEWHERE)  # of another library in this thread
    engine = load(gpu, through=through)
    engine(sample_images(2))
    assert gpu.stack == [ELSEWHERE]
    engine.close()
    assert (gpu.stack[-1], gpu.detached) == (ELSEWHERE, True)


CALLS = {
    "push": "cuCtxPushCurrent_v2",
    "memcpy_htod_async": "cuMemcpyHtoDAsync_v2",
    "memcpy_dtoh_async": "cuMemcpyDtoHAsync_v2",
    "synchronize": "cuStreamSynchronize",
}
"""Functions of a call in pycuda and in the driver's library."""


def sentence(call: str, function: str, status: int, through: Through) -> str:
    """The message of an error of the driver."""
    if through == "pycuda":
        return rf"^the CUDA driver cannot run this engine: cu{call} .* {status}$"
    return rf"^the CUDA driver refuses {function}: [\w ]+ \(error {status}\)$"


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("call", CALLS)
def test_a_driver_that_fails_during_a_call_is_one_sentence(call: str, through: Through) -> None:
    gpu, images = FakeCuda(), sample_images(2)
    engine = load(gpu, 2, through)
    gpu.failing[call] = 700
    future = engine.submit(images)
    with pytest.raises(BackendError, match=sentence(call, CALLS[call], 700, through)):
        future.result(timeout=120)
    del future  # its traceback holds what the fake function was called with
    gpu.failing.clear()
    assert agree(engine(images), images)
    engine.close()
    assert gpu.nothing_left()


def test_nothing_of_a_request_that_failed_is_under_way_any_more() -> None:
    gpu, images = FakeCuda(), sample_images(2)
    with load(gpu) as engine:
        gpu.failing["memcpy_dtoh_async"] = 1
        with pytest.raises(BackendError):
            engine(images)
        assert list(gpu.pending()) == []


OPENING = {
    "init": ("cuInit", 1),
    "Stream": ("cuStreamCreate", 3),
    "mem_alloc": ("cuMemAlloc_v2", 4),
    "pagelocked_empty": ("cuMemAllocHost_v2", 4),
}
"""Functions that loading an engine with two slots calls, in pycuda and in the library, and how often."""


@pytest.mark.parametrize(
    ("call", "working", "through"),
    [
        (call, n, through)
        for call, (_, times) in OPENING.items()
        for through in THROUGH
        for n in (range(times) if through == "pycuda" else [times - 1])
    ],
)
def test_a_driver_that_fails_during_loading_leaves_nothing_behind(
    call: str, working: int, through: Through
) -> None:
    gpu = FakeCuda()
    gpu.failing[call], gpu.working[call] = 2, working
    with pytest.raises(BackendError, match=sentence(call, OPENING[call][0], 2, through)):
        load(gpu, 2, through)
    gpu.detached = gpu.detached or call == "init"  # which comes before there is a context
    assert gpu.nothing_left()


@pytest.mark.parametrize("through", THROUGH)
def test_too_little_memory_for_the_last_slot_is_one_sentence_and_gives_everything_back(
    through: Through,
) -> None:
    gpu = FakeCuda(room=3 * 8 * 3 * 16 * 16 * 4)
    with pytest.raises(BackendError, match=r"the CUDA driver .*: out of memory"):
        load(gpu, 3, through)
    assert gpu.nothing_left()


@pytest.mark.parametrize("forgotten", ["synchronize", "zeros"])
def test_the_fake_gpu_shows_what_is_read_too_early(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, images = FakeCuda(), sample_images(2)
    if forgotten == "zeros":
        gpu.Context.synchronize = lambda: None
    engine = load(gpu)
    if forgotten == "synchronize":
        monkeypatch.setattr(fake_cuda.Stream, "synchronize", lambda self: None)
        found = engine(images)
        assert found.view(np.uint8).tolist() == [[fake_cuda.POISON] * 4 * CLASSES] * 2
    else:
        assert all((memory.content == fake_cuda.POISON).all() for memory in gpu.memory)


@pytest.mark.parametrize(
    ("options", "parallel"),
    [({}, 1), ({"hint": "throughput"}, 2), ({"hint": "throughput", "streams": 4}, 4), ({"streams": 3}, 3)],
)
def test_the_hint_or_a_number_gives_the_streams(options: dict[str, Any], parallel: int) -> None:
    assert RunOptions(**options).parallel == parallel
