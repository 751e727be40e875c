"""Images that are on the GPU already are read there, once they are written, or refused in one sentence."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch

from rescompile.backends.cuda import events
from rescompile.backends.cuda.array_protocols import DLTensor, _pointer_of
from rescompile.backends.zero_copy import DeviceImages
from rescompile.errors import BackendError, EngineError, UsageError
from tests.backends.cuda.fake_cuda import ELSEWHERE, DlpackTensor, FakeCuda, InterfaceArray, Through
from tests.backends.cuda.test_runner import THROUGH, agree, load
from tests.backends.graphs import sample_images
from tests.backends.tensorrt.fake_trt import FakeNetwork

KINDS = [DlpackTensor, InterfaceArray]


def executed(engine: Any) -> list[tuple[int, int, tuple[int, ...]]]:
    """Stream, address and shape of every inference."""
    trt: FakeNetwork = engine._runner._executors[0].context._network
    return trt.executed


@pytest.mark.parametrize("through", THROUGH)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2, 8])
def test_images_are_read_where_they_are_once_they_are_written(
    kind: Any, count: int, through: Through
) -> None:
    gpu, images = FakeCuda(), sample_images(count)
    with load(gpu, through=through) as engine:
        given = kind(gpu, images)
        assert agree(engine(given), images)
        assert [entry[1:] for entry in executed(engine)] == [(given.memory.address, images.shape)]


@pytest.mark.parametrize("kind", KINDS)
def test_many_submitted_tensors_get_their_own_answers(kind: Any) -> None:
    gpu = FakeCuda()
    requests = [sample_images(1 + seed % 10, seed=seed) for seed in range(20)]
    with load(gpu, 3) as engine:
        pending = [engine.submit(kind(gpu, images)) for images in requests]
        for future, images in zip(pending, requests, strict=True):
            assert agree(future.result(timeout=120), images)
    assert gpu.nothing_left()


def test_parts_of_a_large_batch_are_read_where_they_are_and_the_rest_is_filled_up() -> None:
    gpu, images = FakeCuda(), sample_images(17)
    with load(gpu) as engine:
        given = DlpackTensor(gpu, images)
        assert agree(engine(given), images)
        first, second, last = executed(engine)
        assert first[1:] == (given.memory.address, (8, 3, 16, 16))
        assert second[1:] == (given.memory.address + 8 * images[0].nbytes, (8, 3, 16, 16))
        assert (last[1] == given.memory.address, last[2]) == (False, (2, 3, 16, 16))


@pytest.mark.parametrize("through", THROUGH)
def test_images_at_a_crooked_address_are_copied_on_the_gpu(through: Through) -> None:
    gpu, images = FakeCuda(), sample_images(4)
    with load(gpu, through=through) as engine:
        given = InterfaceArray(gpu, images, offset=16)
        assert agree(engine(given), images)
        assert executed(engine)[0][1] % 256 == 0


def test_the_fake_gpu_shows_images_that_are_read_before_they_are_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events.Event, "make_wait", lambda self, stream: None)
    gpu, images = FakeCuda(), sample_images(2)
    with load(gpu) as engine:
        assert not agree(engine(DlpackTensor(gpu, images)), images)


def test_memory_is_held_until_the_answer_is_there_and_no_longer() -> None:
    gpu, images = FakeCuda(), sample_images(2)
    with load(gpu) as engine:
        given = DlpackTensor(gpu, images)
        gpu.run(given.stream)
        watched = weakref.ref(given.array)
        alive: list[bool] = []
        gpu.at_synchronize = lambda: alive.append(watched() is not None)
        go = threading.Event()
        engine._pool.submit(go.wait, 30.0)  # the one thread is busy until the tensor is dropped
        future = engine.submit(given)
        del given
        go.set()
        assert agree(future.result(timeout=120), images)
        assert alive == [True]
    assert watched() is None


@pytest.mark.parametrize("stream", [None, 1])
def test_a_writer_without_a_stream_and_the_default_stream_are_understood(stream: int | None) -> None:
    gpu, images = FakeCuda(), sample_images(2)
    with load(gpu) as engine:
        given = InterfaceArray(gpu, images)
        gpu.run(given.stream)  # written already
        given.said["stream"] = stream
        assert agree(engine(given), images)


def test_an_old_interface_waits_for_the_default_stream() -> None:
    gpu, images = FakeCuda(), sample_images(2)
    with load(gpu) as engine:
        given = InterfaceArray(gpu, images)
        gpu.enqueue(gpu._default, lambda: gpu.run(given.stream))
        given.said["version"] = 2
        del given.said["stream"]
        assert agree(engine(given), images)


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (
        DlpackTensor,
        {"device": 1},
        r"DlpackTensor is on CUDA device 1, .* device 0; copy .*tensor\.to\('cuda:0'\)",
    ),
    (InterfaceArray, {"device": 1}, "InterfaceArray is on CUDA device 1, but this engine runs on device 0"),
]


@pytest.mark.parametrize(("kind", "options", "words"), REFUSED)
def test_another_gpu_is_refused(kind: Any, options: dict[str, Any], words: str) -> None:
    gpu = FakeCuda()
    with load(gpu) as engine, pytest.raises(UsageError, match=words):
        engine.submit(kind(gpu, sample_images(2), **options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", [(0, 1, 3, 2), (1, 0, 2, 3)])
def test_what_is_not_contiguous_is_refused(kind: Any, axes: tuple[int, ...]) -> None:
    gpu = FakeCuda()
    given = kind(gpu, np.ascontiguousarray(sample_images(3).transpose(axes)))
    given.array = given.array.transpose(axes)
    if kind is InterfaceArray:
        given.said |= {"shape": given.array.shape, "strides": given.array.strides}
    with (
        load(gpu) as engine,
        pytest.raises(UsageError, match=r"not contiguous .*pass tensor\.contiguous\(\)"),
    ):
        engine(given)


def test_strides_of_one_image_do_not_matter() -> None:
    gpu, images = FakeCuda(), sample_images(8)
    with load(gpu) as engine:
        given = DlpackTensor(gpu, images)
        given.array = given.array[::8]
        assert agree(engine(given), images[:1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": object()}, r"cannot be shared \(it has a mask\)"),
        ({"typestr": "strange"}, "cannot be shared .*pass a tensor without gradient"),
        ({"typestr": "<f8"}, r"float64 \[2, 3, 16, 16\], but this engine takes float32"),
        ({"shape": (0, 3, 16, 16), "data": (0, False)}, "there are no images"),
        ({"shape": (3, 16, 16)}, "add the batch dimension"),
        ({"shape": ()}, "the images are float32"),
        ({"data": (0x1234, False)}, "does not lie in memory of the CUDA driver.*still alive"),
        ({"version": None}, "cannot be shared"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(change: dict[str, Any], words: str) -> None:
    gpu = FakeCuda()
    given = InterfaceArray(gpu, sample_images(2))
    given.said |= change
    with load(gpu) as engine, pytest.raises(UsageError, match=words):
        engine(given)


def test_an_interface_without_its_entries_is_refused() -> None:
    gpu = FakeCuda()
    given = InterfaceArray(gpu, sample_images(2))
    del given.said["typestr"]
    with (
        load(gpu) as engine,
        pytest.raises(UsageError, match=r"InterfaceArray cannot be shared \('typestr'\)"),
    ):
        engine(given)


def test_numbers_that_are_none_are_refused() -> None:
    gpu = FakeCuda()
    given = DlpackTensor(gpu, np.zeros((2, 3, 16, 16), np.complex64))
    with load(gpu) as engine, pytest.raises(UsageError, match="neither integers nor floating-point numbers"):
        engine(given)


@pytest.mark.parametrize(("context", "taken"), [(None, True), (ELSEWHERE, False)])
def test_memory_of_another_context_is_refused(context: int | None, taken: bool) -> None:
    gpu, images = FakeCuda(), sample_images(2)
    with load(gpu) as engine:
        given = DlpackTensor(gpu, images)
        given.memory.context = context
        if taken:
            assert agree(engine(given), images)
            return
        with pytest.raises(UsageError, match="another CUDA context; make it in the device's primary context"):
            engine(given)


@pytest.mark.parametrize("call", ["cuEventCreate", "cuEventRecord", "cuStreamWaitEvent", "memcpy_dtod_async"])
def test_a_driver_that_fails_on_the_way_is_one_sentence_and_nothing_leaks(call: str) -> None:
    gpu, images = FakeCuda(), sample_images(1)
    with load(gpu) as engine:
        gpu.failing[call] = 400
        for _ in range(3):
            with pytest.raises(BackendError, match=rf"the CUDA driver .*{call}.* 400\)?$"):
                engine(DlpackTensor(gpu, images))
        gpu.failing.clear()
        assert agree(engine(DlpackTensor(gpu, images)), images)
        gc.collect()
        assert len(gpu.events) == 1
    assert gpu.nothing_left()


def test_events_are_used_again() -> None:
    gpu, images = FakeCuda(), sample_images(2)
    with load(gpu) as engine:
        for _ in range(5):
            engine(DlpackTensor(gpu, images))
        for _ in range(5):
            with pytest.raises(UsageError):
                engine(DlpackTensor(gpu, images[:, :2].copy()))
        assert len(gpu.events) == 1


def test_a_request_that_is_cancelled_gives_its_event_back() -> None:
    gpu, images = FakeCuda(), sample_images(2)
    engine = load(gpu)
    lent = engine._runner.import_images(DlpackTensor(gpu, images))  # type: ignore[union-attr]
    assert isinstance(lent, DeviceImages)
    engine.close()
    assert gpu.nothing_left()
    del lent


def test_a_closed_engine_takes_no_tensor() -> None:
    gpu = FakeCuda()
    engine = load(gpu)
    runner: Any = engine._runner
    engine.close()
    given = DlpackTensor(gpu, sample_images(2))
    with pytest.raises(EngineError, match="closed"):
        engine(given)
    with pytest.raises(BackendError, match="closed"):
        runner.import_images(given)


@pytest.mark.parametrize(
    "values", [torch.arange(24.0).reshape(2, 3, 4), torch.ones(3, 2, dtype=torch.uint8).T]
)
def test_the_structure_is_that_of_other_packages(values: torch.Tensor) -> None:
    capsule = values.__dlpack__()
    tensor = DLTensor.from_address(_pointer_of(capsule, b"dltensor"))
    assert tensor.data == values.data_ptr()
    assert (tensor.device.kind, tensor.byte_offset) == (1, 0)
    assert tuple(tensor.shape[: tensor.ndim]) == tuple(values.shape)
    assert tuple(tensor.strides[: tensor.ndim]) == values.stride()
    assert (tensor.dtype.bits, tensor.dtype.lanes) == (8 * values.element_size(), 1)
