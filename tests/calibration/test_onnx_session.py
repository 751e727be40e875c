from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
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
    lean = open_session(model, onnxruntime.SessionOptions, providers=["CPUExecutionProvider"])
    assert np.array_equal(plain.run(None, {"x": IMAGES})[0], lean.run(None, {"x": IMAGES})[0])
    assert model.SerializeToString() == before


def test_answers_do_not_depend_on_the_graph_after_opening() -> None:
    model = network(np.float32)
    session = open_session(model, onnxruntime.SessionOptions, providers=["CPUExecutionProvider"])
    expected = session.run(None, {"x": IMAGES})[0]
    model.graph.initializer[0].raw_data = bytes(len(model.graph.initializer[0].raw_data))
    assert np.array_equal(session.run(None, {"x": IMAGES})[0], expected)


def test_inner_tensors_are_returned_where_they_are_asked_for() -> None:
    model = network(np.float32)
    session = open_session(
        model, onnxruntime.SessionOptions, outputs=["conv"], providers=["CPUExecutionProvider"]
    )
    assert [output.name for output in session.get_outputs()] == ["conv"]


@pytest.mark.parametrize("serialized", [False, True])
def test_a_tensor_that_a_fusion_would_lose_is_returned(
    serialized: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime fuses this addition into the convolution whose answer is asked for, and then does not find it."""
    rng = np.random.default_rng(2)
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        network (float[N,32,5,5] x) => (float[N,24,5,5] y, float[N,24,5,5] shortcut) {
            shortcut = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w, b)
            inner = Conv <group = 2, pads = [1, 1, 1, 1]> (x, v, b)
            sum = Add (inner, shortcut)
            y = HardSwish (sum)
        }""")
    for name, shape in {"w": (24, 16, 3, 3), "v": (24, 16, 3, 3), "b": (24,)}.items():
        model.graph.initializer.append(
            numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32), name)
        )
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = model.SerializeToString()
    expected = onnxruntime.InferenceSession(data, plain, providers=["CPUExecutionProvider"]).run(
        None, {"x": IMAGES}
    )
    session = open_session(
        data if serialized else model, onnxruntime.SessionOptions, providers=["CPUExecutionProvider"]
    )
    for one, other in zip(expected, session.run(None, {"x": IMAGES}), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-4)
    assert "EP Error" not in capfd.readouterr().out


def test_a_graph_that_cannot_run_keeps_its_reason(capfd: pytest.CaptureFixture[str]) -> None:
    model = network(np.float32)
    model.graph.node[-1].op_type = "NoSuchOperator"
    with pytest.raises(Exception, match="NoSuchOperator"):
        open_session(model, onnxruntime.SessionOptions, providers=["CPUExecutionProvider"])
    assert "EP Error" not in capfd.readouterr().out


def test_large_constants_alone_are_left_out() -> None:
    model = network(np.float32)
    shell, weights = without_weights(model)
    assert list(weights) == ["w"]
    assert np.array_equal(weights["w"], numpy_helper.to_array(model.graph.initializer[0]))
    assert shell.ByteSize() < LARGE
    assert [tensor.name for tensor in shell.graph.initializer] == ["w", "one", "scale", "zero"]
    assert shell.metadata_props == model.metadata_props
    assert shell.graph.node == model.graph.node
