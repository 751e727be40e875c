"""The runner calls TensorRT as it must (a fake GPU that computes on the host when a thread waits for it)."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from rescompile.backends.tensorrt.runner import TensorRtRunner
from rescompile.errors import BackendError
from rescompile.manifest import Batch, OutputSpec, SizeRange
from rescompile.runtime.engine import Engine
from tests.backends.cuda.fake_cuda import FakeCuda, cuda
from tests.backends.engines import manifest
from tests.backends.graphs import CLASSES, sample_images
from tests.backends.tensorrt.fake_trt import FakeNetwork, Severity


def network(*refused: str) -> FakeNetwork:
    made = FakeNetwork(FakeCuda(), CLASSES)
    made.refused.update(refused)
    return made


def runner(trt: FakeNetwork, batch: Batch | None = None, parallel: int = 1) -> TensorRtRunner:
    described = manifest("fp32", "tensorrt", batch or Batch(1, 4, 8))
    return TensorRtRunner(trt, cuda(trt.gpu), b"engine", described, parallel=parallel)


@pytest.mark.parametrize("count", [1, 8])
def test_logits_come_back_for_every_batch_size(count: int) -> None:
    trt = network()
    images = sample_images(count)
    expected = images.reshape(count, -1).sum(axis=1)
    np.testing.assert_allclose(runner(trt)(images)[:, 0], expected, rtol=1e-4, atol=1e-3)
    assert trt.executed[-1][2] == images.shape


@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_several_outputs_come_back_by_name_and_in_shape(count: int) -> None:
    trt = FakeNetwork(FakeCuda(), CLASSES, c3=2 * 4 * 4)
    described = manifest("fp32", "tensorrt", Batch(1, 4, 8))
    logits = msgspec.structs.replace(described.outputs[0], kind="features", labels=())
    maps = msgspec.structs.replace(logits, name="c3", shape=(-1, 2, 4, 4), layout="NCHW")
    described = msgspec.structs.replace(described, outputs=(logits, maps))
    images = sample_images(count)
    engine = Engine(described, TensorRtRunner(trt, cuda(trt.gpu), b"engine", described))
    found = engine(images)
    assert list(found) == ["logits", "c3"]
    assert found["c3"].shape == (count, 2, 4, 4)
    sums = images.reshape(count, -1).sum(axis=1)
    np.testing.assert_allclose(found["logits"][:, 1], sums + 1, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found["c3"].reshape(count, -1)[:, 31], 2 * (sums + 31), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (24, 16), (16, 16)])
def test_images_of_several_sizes_give_outputs_that_follow(size: tuple[int, int]) -> None:
    trt = FakeNetwork(FakeCuda(), 0)
    trt.outputs = {"c2": 0}
    described = manifest("fp32", "tensorrt", Batch(1, 4, 8))
    maps = OutputSpec("c2", (-1, 2, -1, -1), "float32", "NCHW", "features")
    described = msgspec.structs.replace(
        described,
        inputs=(msgspec.structs.replace(described.inputs[0], shape=(-1, 3, -1, -1)),),
        outputs=(maps,),
        sizes=SizeRange((8, 8), (24, 16)),
    )
    images = np.random.default_rng(0).normal(size=(3, 3, *size)).astype(np.float32)
    with Engine(described, TensorRtRunner(trt, cuda(trt.gpu), b"engine", described)) as engine:
        found = engine(images)
    assert found.shape == (3, 2, size[0] // 2, size[1] // 2)
    expected = images.reshape(3, -1).sum(axis=1)[:, None] + np.arange(found[0].size)
    np.testing.assert_allclose(found.reshape(3, -1), expected, rtol=1e-4, atol=1e-3)


def test_images_need_not_be_contiguous() -> None:
    images = sample_images(4)[::2]
    found = runner(network())(images)
    np.testing.assert_allclose(found[:, 0], images.reshape(2, -1).sum(axis=1), rtol=1e-4, atol=1e-3)


def test_every_slot_has_a_context_with_memory_of_its_own() -> None:
    trt = network()
    runner(trt, parallel=3)
    answered = [context._addresses["logits"] for context in trt.contexts]
    assert len(set(answered)) == 3


@pytest.mark.parametrize("count", [1, 9])
def test_a_batch_outside_of_the_range_is_refused(count: int) -> None:
    with pytest.raises(BackendError, match=f"{count} images at once.*takes 2 to 8"):
        runner(network(), Batch(2, 4, 8))(sample_images(count))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("shape", r"the engine refuses images of shape \[1, 3, 16, 16\]"),
        ("execute", "the engine cannot be executed: it gave no reason"),
        ("images", "the engine refuses the address of the images: it gave no reason"),
    ],
)
def test_what_it_refuses_during_a_call_is_one_sentence(what: str, words: str) -> None:
    trt, images = network(), sample_images(1)
    run = runner(trt)
    trt.refused.add(what)
    with pytest.raises(BackendError, match=words):
        run(images)
    assert (trt.gpu.depth, list(trt.gpu.pending())) == (0, [])
    trt.refused.clear()
    np.testing.assert_allclose(run(images)[0, 0], images.sum(), rtol=1e-4, atol=1e-3)


def test_an_error_is_told_with_its_own_reason_alone() -> None:
    trt = network()
    run = runner(trt)
    trt.refused.add("execute")
    for reason in ("cask failed", "too hot"):
        trt.logger.log(Severity.ERROR, reason)
        with pytest.raises(BackendError, match=f"executed: {reason}$"):
            run(sample_images(1))


@pytest.mark.parametrize("what", ["engine", "context", "logits"])
def test_an_engine_that_is_refused_gives_everything_back(what: str) -> None:
    trt = network(what)
    with pytest.raises(
        BackendError, match=rf"tensorrt refuses the engine: (no {what} here|it gave no reason)"
    ):
        runner(trt)
    assert trt.gpu.nothing_left()


def test_a_profiler_is_told_of_every_context() -> None:
    trt = network()
    runner(trt, parallel=2).attach("profiler")
    assert [context.profiler for context in trt.contexts] == ["profiler"] * 2
    assert trt.gpu.depth == 0


def test_closing_drops_every_context() -> None:
    run = runner(network(), parallel=2)
    executors = list(run._executors)
    run.close()
    assert [executor.context for executor in executors] == [None, None]
