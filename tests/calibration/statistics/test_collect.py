from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from calibration.errors import CalibrationError
from calibration.statistics.collect import collect, collect_channels
from calibration.statistics.observers import Histogram
from tests.calibration.statistics.histograms import histogram_of

TENSORS = ("input", "stem", "block.conv", "block")


def model(bias: float = 0.0) -> onnx.ModelProto:
    """conv -> relu (stem) -> conv (block.conv) -> + stem -> relu (block) -> mean (logits)."""
    rng = np.random.default_rng(0)
    weights = {
        f"w{i}": rng.normal(size=(4, channels, 3, 3)).astype(np.float32) for i, channels in enumerate((3, 4))
    }
    weights["b"] = np.full(4, bias, np.float32)
    nodes = [
        helper.make_node("Conv", ["input", "w0"], ["stem.pre"], pads=[1] * 4),
        helper.make_node("Relu", ["stem.pre"], ["stem"]),
        helper.make_node("Conv", ["stem", "w1", "b"], ["block.conv"], pads=[1] * 4),
        helper.make_node("Add", ["block.conv", "stem"], ["block.add"]),
        helper.make_node("Relu", ["block.add"], ["block"]),
        helper.make_node("GlobalAveragePool", ["block"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4, 1, 1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def images(count: int = 6) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(count, 3, 8, 8)).astype(np.float32)


def expected(name: str, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    from onnx.reference import ReferenceEvaluator

    graph = model()
    graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    found: NDArray[np.float32] = ReferenceEvaluator(graph).run([name], {"input": batch})[0]
    return found


def test_every_tensor_is_observed_whole() -> None:
    histograms = collect(model(), TENSORS, [images()[:4], images()[4:]])
    assert tuple(histograms) == TENSORS
    for name in TENSORS[1:]:
        values = expected(name, images())
        found, whole = histograms[name], histogram_of(values)
        assert found.total == values.size
        assert (found.amax, found.minimum) == pytest.approx((whole.amax, whole.minimum), rel=1e-5)
        assert np.abs(np.cumsum(found.counts) - np.cumsum(whole.counts)).max() <= 4


def test_graph_input_is_observed_as_it_is() -> None:
    for tensors in (["input"], ["block", "input"]):
        found = collect(model(), tensors, [images()])["input"]
        assert np.array_equal(found.counts, histogram_of(images()).counts)


def same(a: Histogram, b: Histogram) -> bool:
    return np.array_equal(a.counts, b.counts) and (a.bin_width, a.minimum) == (b.bin_width, b.minimum)


def test_order_of_the_batches_does_not_matter() -> None:
    parts = np.split(images(), 3)
    forward, backward = collect(model(), TENSORS, parts), collect(model(), TENSORS, parts[::-1])
    assert all(same(forward[name], backward[name]) for name in TENSORS)


def test_outputs_may_be_named_and_the_model_stays_as_it_is() -> None:
    graph = model()
    before = graph.SerializeToString()
    alone, together = collect(graph, ["logits"], [images()]), collect(graph, ["logits", "stem"], [images()])
    assert same(alone["logits"], together["logits"])
    assert graph.SerializeToString() == before


def test_progress_counts_images() -> None:
    seen: list[int] = []
    collect(model(), ["stem"], [images()[:4], images()[4:]], progress=seen.append)
    assert seen == [4, 6]


@pytest.mark.usefixtures("young_garbage")
def test_no_more_than_two_batches_run_and_one_waits() -> None:
    alive: list[weakref.ref[NDArray[np.float32]]] = []

    def stream() -> Iterator[NDArray[np.float32]]:
        for _ in range(6):
            gc.collect()
            assert sum(reference() is not None for reference in alive) <= 3
            batch = images(2)
            alive.append(weakref.ref(batch))
            yield batch
            del batch

    collect(model(), ["input", "block"], stream())
    assert len(alive) == 6


def test_activations_that_are_not_finite_are_refused_by_name() -> None:
    with pytest.raises(CalibrationError, match=r"'block' holds NaN or infinity"):
        collect(model(bias=np.inf), ["stem", "block"], [images()] * 5)


@pytest.mark.parametrize("gather", [collect, collect_channels])
def test_batches_that_run_at_once_do_not_lose_a_count(gather: Callable[..., Mapping[str, Any]]) -> None:
    many = np.random.default_rng(2).normal(size=(400, 3, 8, 8)).astype(np.float32)
    found = gather(model(), ["input"], np.split(many, 200))["input"]
    whole = gather(model(), ["input"], [many])["input"]
    assert np.array_equal(found.counts, whole.counts)
    assert found.counts.sum() == many.size


@pytest.mark.parametrize(
    ("name", "words"), [("block.con", "Did you mean 'block.conv'"), ("xyzzy", "no tensor 'xyzzy'")]
)
def test_unknown_tensor_is_refused(name: str, words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        collect(model(), ["stem", name], [images()])


@pytest.mark.parametrize("batches", [[], [np.zeros((0, 3, 8, 8), np.float32)]])
def test_calibration_without_images_is_refused(batches: list[NDArray[np.float32]]) -> None:
    with pytest.raises(CalibrationError, match=r"no calibration images|never observed"):
        collect(model(), ["stem"], batches)


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (3, 8, 8), (2, 1, 8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CalibrationError, match=r"could not run a batch of shape \(.*\): "):
        collect(model(), ["stem"], [np.zeros(shape, np.float32)])


def test_graph_that_onnxruntime_refuses_keeps_its_words() -> None:
    broken = model()
    broken.graph.node[1].op_type = "Relux"
    with pytest.raises(CalibrationError, match=r"ONNX Runtime refuses the fp32 graph: .*Relux"):
        collect(broken, ["stem"], [images()])


def test_error_of_the_image_source_comes_through() -> None:
    def stream() -> Iterator[NDArray[np.float32]]:
        yield images()
        raise CalibrationError("image 7 is broken")

    with pytest.raises(CalibrationError, match="image 7 is broken"):
        collect(model(), ["stem"], stream())
