from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from calibration.onnx_session import LARGE, open_session, without_weights

IMAGES = np.random.default_rng(0).standard_normal((2, 32, 5, 5), dtype=np.float32)


def network(kind: type[np.generic]) -> onnx.ModelProto:
    """A convolution whose weights are stored as ``kind``, and an addition of a small constant."""
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((32, 32, 3, 3)) * 20).astype(kind)
    onnx_kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    scale, zero = np.float32(0.5), np.zeros((), kind)
    dequantize = [helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["float"])]
    cast = [helper.make_node("Cast", ["w"], ["float"], to=TensorProto.FLOAT)]
    graph = helper.make_graph(
        [
            *(dequantize if onnx_kind == TensorProto.INT8 else cast),
            helper.make_node("Conv", ["x", "float"], ["conv"]),
            helper.make_node("Add", ["conv", "one"], ["y"]),
        ],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 32, 3, 3])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.ones((), np.float32), "one"),
            numpy_helper.from_array(np.array(scale), "scale"),
            numpy_helper.from_array(zero, "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"key": "value"})
    return model


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8])
def test_answers_are_those_of_the_serialized_graph(kind: type[np.generic]) -> None:
    model = network(kind)
    before = model.SerializeToString()
    plain = onnxruntime.InferenceSession(before, providers=["CPUExecutionProvider"])
    lean = open_session(model, onnxruntime.SessionOptions(), providers=["CPUExecutionProvider"])
    assert np.array_equal(plain.run(None, {"x": IMAGES})[0], lean.run(None, {"x": IMAGES})[0])
    assert model.SerializeToString() == before


def test_answers_do_not_depend_on_the_graph_after_opening() -> None:
    model = network(np.float32)
    session = open_session(model, onnxruntime.SessionOptions(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": IMAGES})[0]
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    assert np.array_equal(session.run(None, {"x": IMAGES})[0], expected)


def test_inner_tensors_are_returned_where_they_are_asked_for() -> None:
    model = network(np.float32)
    session = open_session(
        model, onnxruntime.SessionOptions(), outputs=["conv"], providers=["CPUExecutionProvider"]
    )
    assert [output.name for output in session.get_outputs()] == ["conv"]


def test_large_constants_alone_are_left_out() -> None:
    model = network(np.float32)
    shell, weights = without_weights(model)
    assert list(weights) == ["w"]
    assert np.array_equal(weights["w"], numpy_helper.to_array(model.graph.initializer[0]))
    assert shell.ByteSize() < LARGE
    assert [tensor.name for tensor in shell.graph.initializer] == ["w", "one", "scale", "zero"]
    assert shell.metadata_props == model.metadata_props
    assert shell.graph.node == model.graph.node
