"""The runner moves memory and calls the engine as it must (a fake GPU that computes on the host)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rescompile.backends.tensorrt_runner import TensorRtRunner
from rescompile.engine import Engine
from rescompile.errors import BackendError
from rescompile.manifest import Batch
from tests.backends.engines import manifest
from tests.backends.fake_trt import FakeTrt, Severity
from tests.backends.graphs import CLASSES, sample_images


class Memory:
    def __init__(self, gpu: FakeGpu, size: int) -> None:
        self.gpu, self.content = gpu, bytearray(size)
        gpu.live.append(self)

    def __int__(self) -> int:
        return id(self)

    def free(self) -> None:
        self.gpu.live.remove(self)


class FakeGpu:
    """pycuda.driver and an engine: logits are sums over each image, plus the class number."""

    def __init__(self) -> None:
        self.live: list[Memory] = []
        self.depth = 0
        self.addresses: dict[str, int] = {}
        self.shape: tuple[int, ...] = ()
        self.works = self.detached = True
        self.Context = SimpleNamespace(pop=self.pop)
        self.detached = False
        self.Error = MemoryError
        self.room = 1 << 30

    def init(self) -> None: ...

    def Device(self, index: int) -> Any:  # noqa: N802
        return SimpleNamespace(retain_primary_context=lambda: self)

    def Stream(self) -> Any:  # noqa: N802
        return SimpleNamespace(handle=7, synchronize=lambda: None)

    def push(self) -> None:
        self.depth += 1

    def pop(self) -> None:
        self.depth -= 1

    def detach(self) -> None:
        self.detached = True

    def mem_alloc(self, size: int) -> Memory:
        assert self.depth == 1
        if size > self.room:
            raise MemoryError("cuMemAlloc failed: out of memory")
        return Memory(self, size)

    def memcpy_htod_async(self, memory: Memory, array: NDArray[Any], stream: Any) -> None:
        assert array.flags.c_contiguous
        memory.content[: array.nbytes] = array.tobytes()

    def memcpy_dtoh_async(self, array: NDArray[Any], memory: Memory, stream: Any) -> None:
        array[...] = np.frombuffer(bytes(memory.content[: array.nbytes]), np.float32).reshape(array.shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        by_address = {int(memory): memory for memory in self.live}
        fed, answered = (by_address[self.addresses[name]] for name in ("images", "logits"))
        count = int(np.prod(self.shape))
        images = np.frombuffer(bytes(fed.content[: count * 4]), np.float32).reshape(self.shape[0], -1)
        logits = images.sum(axis=1, keepdims=True) + np.arange(CLASSES, dtype=np.float32)
        answered.content[: logits.nbytes] = logits.astype(np.float32).tobytes()
        return self.works


class Library(FakeTrt):
    def __init__(self, gpu: FakeGpu | None) -> None:
        super().__init__()
        self.gpu = gpu

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        if self.gpu is None:
            logger.log(Severity.ERROR, "version tag does not match")
            return SimpleNamespace(deserialize_cuda_engine=lambda content: None)
        engine = SimpleNamespace(create_execution_context=lambda: self.gpu)
        return SimpleNamespace(deserialize_cuda_engine=lambda content: engine)


def runner(gpu: FakeGpu, batch: Batch | None = None) -> TensorRtRunner:
    return TensorRtRunner(Library(gpu), gpu, b"engine", manifest("fp32", "tensorrt", batch or Batch(1, 4, 8)))


@pytest.mark.parametrize("count", [1, 8])
def test_logits_come_back_for_every_batch_size(count: int) -> None:
    gpu = FakeGpu()
    images = sample_images(count)
    expected = images.reshape(count, -1).sum(axis=1)
    np.testing.assert_allclose(runner(gpu)(images)[:, 0], expected, rtol=1e-4, atol=1e-3)
    assert gpu.shape == images.shape


def test_images_need_not_be_contiguous() -> None:
    images = sample_images(4)[::2]
    assert runner(FakeGpu())(images).shape == (2, CLASSES)


def test_memory_is_taken_once_for_the_largest_batch() -> None:
    gpu = FakeGpu()
    engine = runner(gpu, Batch(1, 1, 5))
    for count in (1, 5):
        engine(sample_images(count))
    assert [len(memory.content) for memory in gpu.live] == [5 * 3 * 16 * 16 * 4, 5 * CLASSES * 4]


def test_the_context_is_current_only_during_a_call() -> None:
    gpu = FakeGpu()
    engine = runner(gpu)
    engine(sample_images(1))
    assert gpu.depth == 0


@pytest.mark.parametrize("count", [1, 9])
def test_a_batch_outside_of_the_range_is_refused(count: int) -> None:
    with pytest.raises(BackendError, match=f"{count} images at once.*takes 2 to 8"):
        runner(FakeGpu(), Batch(2, 4, 8))(sample_images(count))


def test_an_engine_that_does_not_execute_is_an_error() -> None:
    gpu = FakeGpu()
    engine = runner(gpu)
    gpu.works = False
    with pytest.raises(BackendError, match="cannot be executed"):
        engine(sample_images(1))
    assert gpu.depth == 0


def test_an_engine_that_is_refused_gives_everything_back() -> None:
    gpu = FakeGpu()
    with pytest.raises(BackendError, match="tensorrt refuses the engine: version tag does not match"):
        TensorRtRunner(Library(None), gpu, b"engine", manifest("fp32", "tensorrt"))
    assert gpu.detached
    assert gpu.depth == 0


def test_submitted_requests_run_in_order_on_its_one_stream() -> None:
    gpu = FakeGpu()
    requests = [sample_images(count, seed=count) for count in (3, 1, 8)]
    with Engine(manifest("fp32", "tensorrt", Batch(1, 4, 8)), runner(gpu)) as engine:
        pending = [engine.submit(images) for images in requests]
        for future, images in zip(pending, requests, strict=True):
            expected = images.reshape(len(images), -1).sum(axis=1)
            np.testing.assert_allclose(future.result(timeout=30)[:, 0], expected, rtol=1e-4, atol=1e-3)
    assert (gpu.live, gpu.depth) == ([], 0)


def test_too_little_memory_is_one_sentence_and_gives_everything_back() -> None:
    gpu = FakeGpu()
    with pytest.raises(BackendError, match=r"the CUDA driver cannot run this engine: .* out of memory"):
        runner(gpu, Batch(1, 1, 2**31 - 1))
    assert gpu.detached
    assert gpu.depth == 0


def test_closing_frees_everything_and_may_be_repeated() -> None:
    gpu = FakeGpu()
    engine = runner(gpu)
    engine.close()
    engine.close()
    assert gpu.live == []
    assert gpu.detached
    with pytest.raises(BackendError, match="closed"):
        engine(sample_images(1))
