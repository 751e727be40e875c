"""Graphs of one operation, and small graphs that are written node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper


def graph(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    constants: Mapping[str, NDArray[Any]],
    outputs: Sequence[str] = ("y",),
    *,
    opset: int = 19,
) -> onnx.ModelProto:
    """A graph that reads ``x`` of ``shape``, with shapes inferred."""
    made = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape))],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def single(
    op: str,
    x: NDArray[np.float32],
    inputs: Sequence[NDArray[Any] | None] = (),
    *,
    outputs: int = 1,
    opset: int = 19,
    **attributes: Any,
) -> onnx.ModelProto:
    """The operation ``op`` of ``x`` and constant ``inputs``."""
    names = ["" if each is None else f"c{index}" for index, each in enumerate(inputs)]
    made = [f"y{index}" if index else "y" for index in range(outputs)]
    node = helper.make_node(op, ["x", *names], made, name=op, **attributes)
    constants = {name: each for name, each in zip(names, inputs, strict=True) if each is not None}
    return graph([node], x.shape, constants, made, opset=opset)


def run_onnx(model: onnx.ModelProto, x: NDArray[np.float32]) -> list[NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found: list[NDArray[Any]] = session.run(None, {session.get_inputs()[0].name: x})
    return found
