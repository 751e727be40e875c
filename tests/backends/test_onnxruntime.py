"""The reference executes graphs as they are written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper

from rescompile.backends.onnxruntime import OnnxRuntime, reference_session
from rescompile.errors import BackendError
from rescompile.manifest import Precision
from tests.backends.engines import manifest, request, taking_pixels
from tests.backends.graphs import CLASSES, Rest, residual_net, sample_images, saved


@pytest.mark.parametrize(
    ("precision", "rest"), [("fp16", np.float16), ("int8", np.float16), ("int8", np.float32)]
)
def test_deployable_graphs_run_on_the_cpu_close_to_fp32(precision: Precision, rest: Rest) -> None:
    images = sample_images(4)
    expected = reference_session(residual_net("fp32").SerializeToString(), optimize=True)(images)
    found = reference_session(residual_net(precision, rest=rest).SerializeToString(), optimize=False)(images)
    assert found.dtype == np.float32
    assert found.shape == (4, CLASSES)
    np.testing.assert_allclose(found, expected, atol=0.05 * np.abs(expected).max())


def test_zeros_around_an_image_are_the_largest_values_of_a_max_pool() -> None:
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["padded"]),
        helper.make_node("MaxPool", ["padded"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    images = helper.make_tensor_value_info("x", 1, ["N", 8, 6, 6])
    graph = helper.make_graph(
        nodes, "g", [images], [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(np.array([0, 0, 1, 1] * 2), "pads")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    values = np.full((1, 8, 6, 6), -1, np.float32)
    for optimize in (False, True):
        pooled = reference_session(model.SerializeToString(), optimize=optimize)(values)
        assert pooled[0, 0].tolist() == [[0, 0, 0], [0, -1, -1], [0, -1, -1]]


def test_a_path_and_its_bytes_give_the_same_logits(tmp_path: Path) -> None:
    path = saved(residual_net("int8"), tmp_path)
    by_path, by_bytes = (reference_session(m, optimize=False, threads=1) for m in (path, path.read_bytes()))
    np.testing.assert_array_equal(by_path(sample_images(2)), by_bytes(sample_images(2)))


def test_inner_tensors_come_back_under_their_names() -> None:
    model, wanted = residual_net("int8").SerializeToString(), ("layer1.0.relu", "relu_quantized")
    tensors = reference_session(model, optimize=False, outputs=wanted).tensors(sample_images(2))
    assert tuple(tensors) == wanted
    assert tensors["relu_quantized"].dtype == np.int8
    assert tensors["layer1.0.relu"].shape == (2, 16, 16, 16)


def test_a_tensor_that_is_not_there_is_named() -> None:
    with pytest.raises(BackendError, match=r"no tensor 'layer9.relu'"):
        reference_session(residual_net("fp32").SerializeToString(), optimize=True, outputs=["layer9.relu"])


@pytest.mark.parametrize("content", [b"no protobuf", b""])
def test_a_broken_model_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(BackendError, match=r"cannot load .*model\.onnx: ") as caught:
        reference_session(tmp_path / "model.onnx", optimize=True)
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_refused_in_words() -> None:
    session = reference_session(residual_net("fp32").SerializeToString(), optimize=True)
    with pytest.raises(BackendError, match="cannot run the graph on these images"):
        session(np.zeros((1, 3, 15, 15), np.float32))


def test_a_closed_session_says_so() -> None:
    session = reference_session(residual_net("fp32").SerializeToString(), optimize=True)
    session.close()
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session(sample_images(1))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_engine_is_the_deployable_graph_itself(tmp_path: Path, precision: Precision) -> None:
    path = saved(residual_net(precision), tmp_path)
    assert OnnxRuntime("avx2").build(request(path, precision), tmp_path).files == ("model.onnx",)
    runner = OnnxRuntime().load(tmp_path, manifest(precision, "onnxruntime"))
    expected = reference_session(tmp_path / "model.onnx", optimize=False)(sample_images(3))
    np.testing.assert_array_equal(runner(sample_images(3)), expected)


def test_build_takes_the_model_of_its_own_directory_only(tmp_path: Path) -> None:
    path = saved(residual_net("fp32"), tmp_path)
    with pytest.raises(ValueError, match="own directory"):
        OnnxRuntime().build(request(path, "fp32"), tmp_path / "other")


def test_pixels_are_an_input_like_any_other() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    network = residual_net("fp32")
    whole = reference_session(taking_pixels(network).SerializeToString(), optimize=False)(pixels)
    planes = pixels.transpose(0, 3, 1, 2).astype(np.float32) / 64 - 2
    inner = reference_session(network.SerializeToString(), optimize=False)(planes)
    np.testing.assert_allclose(whole, inner, rtol=1e-5)
