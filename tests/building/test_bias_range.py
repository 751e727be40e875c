"""Biases within int32, as integer backends store them, whatever the weights of a channel are."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from numpy.typing import NDArray

from rescompile.building.deployable import fold_within_int32
from rescompile.graph.full_range import fold_zero_points
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.topology import full_range_tensors, quantized_tensors
from tests.graph.conftest import folded, images, run, with_zero_points

NAME = "resnet20-cifar"


@pytest.fixture(params=["symmetric", "full range"])
def nearly_dead(request: pytest.FixtureRequest) -> onnx.ModelProto:
    """Quantized, with six channels in three convolutions whose weights are tiny and whose biases are not."""
    model = onnx.ModelProto()
    model.CopyFrom(folded(NAME))
    values = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.name in ("conv1", "layer1.0.conv1", "layer2.0.conv1"):
            weight, bias = (onnx.numpy_helper.to_array(values[name]).copy() for name in node.input[1:3])
            weight[0] = 0
            weight[1:6] *= 1e-9
            bias[:6] = 8
            for name, value in zip(node.input[1:3], (weight, bias), strict=True):
                values[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
    full = full_range_tensors(model, widest=64) if request.param == "full range" else []
    tensors = quantized_tensors(model)
    seen = run(model, images(NAME), outputs=tensors)
    scales = {name: float(np.abs(seen[name]).max()) / (255 if name in full else 127) for name in tensors}
    return quantize(model, scales, full_range=full)


def largest(model: onnx.ModelProto) -> float:
    """The largest bias of all convolutions with integer weights, in steps of its channel."""
    found = 0.0
    for node in gs.import_onnx(model).nodes:
        if node.op == "Conv" and node.inputs[1].inputs and node.inputs[0].inputs:
            steps = [each.inputs[0].inputs[1].values.astype(np.float64) for each in node.inputs[:2]]
            found = max(found, float(np.abs(node.inputs[2].values / (steps[0] * steps[1])).max()))
    return found


def optimized(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers: NDArray[np.float32] = session.run(None, {"input": x})[0]
    return answers


def test_every_bias_is_half_of_int32_at_most(nearly_dead: onnx.ModelProto) -> None:
    assert largest(fold_zero_points(nearly_dead)) > 2**31, "the case shows what it is to show"
    assert largest(fold_within_int32(nearly_dead)) <= 2**30 * 1.001


def test_onnx_runtime_with_optimizations_answers_as_the_graph_says(nearly_dead: onnx.ModelProto) -> None:
    model, x = fold_within_int32(nearly_dead), images(NAME)
    expected = run(model, x)["logits"]
    error = np.sqrt(np.square(optimized(model, x) - expected).mean() / np.square(expected).mean())
    assert error < 0.03, "without the coarser scales it is about 1"


def test_the_answers_stay_those_of_the_finer_scales(nearly_dead: onnx.ModelProto) -> None:
    finer, coarser = (
        run(fold(nearly_dead), images(NAME))["logits"] for fold in (fold_zero_points, fold_within_int32)
    )
    np.testing.assert_allclose(coarser, finer, rtol=0, atol=0.01 * float(np.abs(finer).max()))


def test_usual_networks_keep_their_scales() -> None:
    before = with_zero_points("resnet50")
    assert fold_within_int32(before).SerializeToString() == fold_zero_points(before).SerializeToString()
