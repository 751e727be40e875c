"""Exact pixels are padded behind their quantizer, and the network computes the same integers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from calibration.preprocess import CIFAR, IMAGENET, Preprocess, normalize
from rescompile.backends.cpu.lowering import lower
from rescompile.backends.openvino.compile import compile_model
from rescompile.graph.half import half
from rescompile.graph.pixels import read_pixels
from rescompile.graph.preprocess import take_uint8
from rescompile.graph.shared.names import PIXELS_PAD
from tests.graph.conftest import folded, run
from tests.graph.test_pixels import CAFFE, LARGEST, UNIT, every_byte, in_int8

CONCAT = f"{PIXELS_PAD}.bytes"


def pads_of(model: onnx.ModelProto) -> list[str]:
    """What each Pad reads."""
    return [node.input[0] for node in model.graph.node if node.op_type == "Pad" and PIXELS_PAD in node.name]


@pytest.mark.parametrize("preprocess", [IMAGENET, CIFAR, UNIT, LARGEST, CAFFE])
@pytest.mark.parametrize("rest", ["float32", "float16"])
@pytest.mark.parametrize("raw", [False, True])
def test_the_padded_bytes_are_those_of_the_deployable_graph(
    preprocess: Preprocess, rest: str, raw: bool
) -> None:
    graph = in_int8(read_pixels(folded("resnet20-cifar"), preprocess))
    graph = take_uint8(graph, preprocess) if raw else graph
    graph = half(graph) if rest == "float16" else graph
    pixels = every_byte(32).repeat(2, axis=0)
    x = pixels if raw else normalize(pixels, preprocess)
    expected = run(graph, x, ["pixels.quantize"])["pixels.quantize"]
    lowered = lower(graph, "amx")
    onnx.checker.check_model(lowered, full_check=True)
    assert pads_of(lowered) == [f"{PIXELS_PAD}.channel{index}" for index in range(3)]
    found = run(lowered, x, [CONCAT])[CONCAT]
    # uint8 where the first convolution has a float32 bias, which takes the offset
    assert found.dtype == (np.uint8 if rest == "float32" else np.int8)
    assert np.array_equal(found.astype(int) - (128 if rest == "float32" else 0), expected)
    # blocks of an engine are compared by these names, and these tensors have no padding now
    assert not {"pixels", "pixels.multiply"} & {name for node in lowered.graph.node for name in node.output}


def test_openvino_computes_the_same_as_with_the_pad_in_float() -> None:
    graph = in_int8(read_pixels(folded("resnet18"), IMAGENET))
    x = normalize(every_byte(64).repeat(3, axis=0), IMAGENET)
    lowered = lower(graph, "amx")
    answers = compile_model(lowered.SerializeToString())([x])[0]
    expected = run(lowered, x)["logits"]
    assert np.allclose(expected, run(graph, x)["logits"], rtol=1e-4, atol=1e-4)
    assert np.allclose(answers, expected, rtol=2e-2, atol=2e-2 * np.abs(expected).max())


def test_pixels_that_another_node_reads_in_float_stay_padded_in_float() -> None:
    graph = in_int8(read_pixels(folded("resnet20-cifar"), CIFAR))
    graph.graph.output.append(onnx.helper.make_tensor_value_info("pixels", 1, None))
    assert pads_of(lower(graph, "vnni")) == ["input"]


def test_the_form_for_every_cpu_pads_in_float() -> None:
    graph = in_int8(read_pixels(folded("resnet20-cifar"), CIFAR))
    assert pads_of(lower(graph, "avx2")) == ["input"]
