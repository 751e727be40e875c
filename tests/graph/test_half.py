import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from calibration.preprocess import IMAGENET
from rescompile.errors import GraphError
from rescompile.graph.half import half
from rescompile.graph.preprocess import take_uint8
from tests.graph.conftest import folded, images, int8, run


def float_types(model: onnx.ModelProto) -> set[int]:
    return {tensor.data_type for tensor in model.graph.initializer} & {TensorProto.FLOAT, TensorProto.FLOAT16}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20-cifar"])
def test_fp16_stays_close_to_fp32(name: str) -> None:
    typed, x = half(folded(name)), images(name)
    onnx.checker.check_model(typed, full_check=True)
    expected, found = run(folded(name), x)["logits"], run(typed, x)["logits"]
    assert found.dtype == np.float32
    assert 0 < np.linalg.norm(found - expected) <= 1e-2 * np.linalg.norm(expected)


def test_no_fp32_constant_is_left() -> None:
    assert float_types(half(folded("resnet18"))) == {TensorProto.FLOAT16}
    assert float_types(half(int8("resnet18"))) == {TensorProto.FLOAT16}


def test_scales_lose_nothing_and_integers_stay() -> None:
    from calibration.scales import scale_of
    from rescompile.graph.quantize import quantize
    from rescompile.graph.shared.topology import quantized_tensors

    graph = folded("resnet18")
    wide = quantize(graph, {name: scale_of(3.7) for name in quantized_tensors(graph)})
    narrow = half(wide)
    before = {t.name: numpy_helper.to_array(t) for t in wide.graph.initializer}
    after = {t.name: numpy_helper.to_array(t) for t in narrow.graph.initializer}
    for name, value in before.items():
        if name.endswith((".scale", ".int8", ".zero_point")):
            assert np.array_equal(value.astype(np.float64), after[name].astype(np.float64)), name


def test_a_weight_beyond_fp16_is_named() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(folded("resnet18"))
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "layer1.0.conv1.bias")
    bias.CopyFrom(numpy_helper.from_array(np.full(64, 1e5, np.float32), bias.name))
    with pytest.raises(
        GraphError,
        match=r"'layer1.0.conv1.bias' holds 100000, but .* FP16 number is 65504: .*--precision fp32",
    ):
        half(model)


def test_uint8_input_equals_preprocessing_outside() -> None:
    from calibration.preprocess import normalize

    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for graph in (folded("resnet18"), int8("resnet18")):
        inside = take_uint8(graph, IMAGENET)
        onnx.checker.check_model(inside, full_check=True)
        expected = run(graph, normalize(pixels, IMAGENET))["logits"]
        assert np.abs(run(inside, pixels)["logits"] - expected).max() <= 2e-2 * np.abs(expected).max()
    exact = run(take_uint8(folded("resnet18"), IMAGENET), pixels)["logits"]
    assert np.allclose(exact, run(folded("resnet18"), normalize(pixels, IMAGENET))["logits"], atol=1e-4)


def test_uint8_input_can_be_typed_fp16() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    inside = take_uint8(folded("resnet18"), IMAGENET)
    narrow = half(inside)
    onnx.checker.check_model(narrow, full_check=True)
    assert float_types(narrow) == {TensorProto.FLOAT16}
    expected = run(inside, pixels)["logits"]
    assert np.linalg.norm(run(narrow, pixels)["logits"] - expected) <= 1e-2 * np.linalg.norm(expected)
