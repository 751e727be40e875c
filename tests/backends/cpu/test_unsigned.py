"""Signed tensors become uint8 where that is exact, and nowhere else; the answers stay the same to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from rescompile.backends.cpu.lowering import lower
from rescompile.backends.openvino.compile import compile_model
from rescompile.manifest import CpuForm
from tests.graph.conftest import run

STEP, WEIGHT_STEP = 0.25, 0.5
"""Powers of two: no float sum of the networks here is rounded."""


def network(
    *, channels: int = 3, pads: int = 0, rest: type[Any] = np.float32, bias: bool = True, also: str = ""
) -> onnx.ModelProto:
    """A quantized image and one 3x3 convolution with the most extreme weights; ``also`` names a second reader."""
    generator = np.random.default_rng(0)
    weight = generator.choice(np.array([-128, -127, 127], np.int8), (5, channels, 3, 3))
    values = {
        "step": np.asarray(STEP, rest),
        "zero": np.zeros((), np.int8),
        "weight.int8": weight,
        "weight.step": np.full(5, WEIGHT_STEP, rest),
        "weight.zero": np.zeros(5, np.int8),
        "bias": generator.integers(-999, 999, 5).astype(rest),
    }
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(rest))
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "step", "zero"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"], "d"),
        helper.make_node(
            "DequantizeLinear", ["weight.int8", "weight.step", "weight.zero"], ["weight"], "weight", axis=0
        ),
        helper.make_node("Conv", ["d", "weight", *["bias"] * bias], ["y"], "conv", pads=[pads] * 4),
        *([helper.make_node(also, ["d"], ["z"], "also")] if also else []),
    ]
    outputs = ["y", *(["z"] if also else [])]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", kind, ["N", channels, "H", "W"])],
        [helper.make_tensor_value_info(name, kind, ["N", None, None, None]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def images(channels: int = 3) -> NDArray[np.float32]:
    """Every int8, those at both ends most often, and values beyond them."""
    generator = np.random.default_rng(1)
    steps = generator.integers(-130, 130, (2, channels, 9, 8))
    steps[generator.random(steps.shape) < 0.5] = -128
    return (steps * STEP).astype(np.float32)


def held_as(model: onnx.ModelProto) -> int:
    """The type of the quantizer's zero point."""
    (quantize,) = (node for node in model.graph.node if node.op_type == "QuantizeLinear")
    return next(each.data_type for each in model.graph.initializer if each.name == quantize.input[2])


@pytest.mark.parametrize("form", ["vnni", "amx"])
def test_the_sums_are_the_same_to_the_bit(form: CpuForm) -> None:
    model, x = network(), images()
    lowered = lower(model, form)
    onnx.checker.check_model(lowered, full_check=True)
    assert held_as(lowered) == TensorProto.UINT8
    expected = run(model, x, ["y"])["y"]
    assert np.array_equal(run(lowered, x, ["y"])["y"], expected)
    assert np.array_equal(compile_model(lowered.SerializeToString())([x])[0], expected)


def test_all_convolutions_that_read_a_tensor_take_the_offset() -> None:
    model, x = network(), images()
    second = helper.make_node("Conv", ["d", "weight", "bias"], ["z"], "second", strides=[2, 2])
    model.graph.node.append(second)
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 5, None, None]))
    lowered = lower(model, "vnni")
    assert held_as(lowered) == TensorProto.UINT8
    expected, found = run(model, x, ["y", "z"]), run(lowered, x, ["y", "z"])
    assert all(np.array_equal(found[name], expected[name]) for name in ("y", "z"))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(network(pads=1), id="zeros around the image would be -128"),
        pytest.param(network(rest=np.float16), id="the bias of 16 bits is too coarse"),
        pytest.param(network(bias=False), id="no bias"),
        pytest.param(network(also="Neg"), id="read in float, too"),
        pytest.param(network(channels=60), id="sums beyond 2**24"),
    ],
)
def test_elsewhere_the_tensor_stays_signed(other: onnx.ModelProto) -> None:
    assert held_as(lower(other, "vnni")) == TensorProto.INT8


def test_the_form_for_every_cpu_has_no_offset() -> None:
    assert "zero.offset" not in {each.name for each in lower(network(), "avx2").graph.initializer}
