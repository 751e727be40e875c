"""All methods together on narrow networks of several families, quantized here in the plainest way."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibration.collect_statistics import StatisticsRequest, collect_statistics
from calibration.methods.channel_groups import channel_groups
from calibration.methods.rounding import LearnedWeight, learn_rounding
from calibration.network import weighted_nodes
from calibration.scales import channel_scales, scale_of
from calibration.scales import quantize as to_int8
from calibration.statistics.collect import collect
from calibration.statistics.sensitivity import undecided
from rescompile.graph.equalize import equalize
from rescompile.metrics import relative_rms
from tests.calibration.single_operations import run_onnx
from tests.graph.random_graphs import FAMILIES

Images = NDArray[np.float32]
REQUEST = StatisticsRequest(channels=True, gradients=True, equalize=True, samples=32)


def quantizable(model: onnx.ModelProto) -> list[str]:
    """Inputs of convolutions and linear layers, except those of gates, which see one pixel."""
    shapes = {entry.name: entry.type.tensor_type.shape.dim for entry in model.graph.value_info}
    found = []
    for node in model.graph.node:
        shape = shapes.get(node.input[0], ())
        gate = len(shape) == 4 and shape[2].dim_value == shape[3].dim_value == 1
        if node.op_type in ("Conv", "Gemm") and not gate and node.input[0] not in found:
            found.append(node.input[0])
    return found


def quantized(
    model: onnx.ModelProto,
    thresholds: Mapping[str, float],
    learned: Mapping[str, LearnedWeight] | None = None,
) -> onnx.ModelProto:
    """Q/DQ at every input of ``thresholds``, and weights in INT8."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    reading = {node.name for node in weighted_nodes(model, thresholds)}
    constants = {entry.name: entry for entry in made.graph.initializer}
    nodes: list[onnx.NodeProto] = []

    def pair(
        name: str, stored: str, scale: NDArray[np.float32], zero: NDArray[np.int8], **attributes: int
    ) -> str:
        for suffix, values in (("scale", scale), ("zero", zero)):
            made.graph.initializer.append(numpy_helper.from_array(values, f"{name}.{suffix}"))
        inputs = [stored, f"{name}.scale", f"{name}.zero"]
        nodes.append(
            helper.make_node("DequantizeLinear", inputs, [f"{name}.dq"], name=f"{name}.dq", **attributes)
        )
        return f"{name}.dq"

    for node in model.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if node.name in reading:
            source = node.input[0]
            copy.input[0] = f"{source}.dq"
            if not any(f"{source}.dq" in each.output for each in nodes):
                scale = np.array(scale_of(thresholds[source]), np.float32)
                pair(source, f"{source}.q", scale, np.array(0, np.int8))
                inputs = [source, f"{source}.scale", f"{source}.zero"]
                nodes.insert(
                    -1, helper.make_node("QuantizeLinear", inputs, [f"{source}.q"], name=f"{source}.q")
                )
            weight = numpy_helper.to_array(constants[node.input[1]])
            scales = channel_scales(weight)
            new = LearnedWeight(
                to_int8(weight, scales), scales, numpy_helper.to_array(constants[node.input[2]])
            )
            new = (learned or {}).get(node.name, new)
            constants[node.input[1]].CopyFrom(numpy_helper.from_array(new.values, node.input[1]))
            constants[node.input[2]].CopyFrom(numpy_helper.from_array(new.bias, node.input[2]))
            zero = np.zeros(len(weight), np.int8)
            copy.input[1] = pair(f"{node.name}.w", node.input[1], new.scales, zero, axis=0)
        nodes.append(copy)
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def error(reference: list[Images], model: onnx.ModelProto, x: Images) -> float:
    found = run_onnx(model, x)
    errors = [
        relative_rms(a.reshape(len(a), -1), b.reshape(len(b), -1))
        for a, b in zip(reference, found, strict=True)
    ]
    return float(np.sqrt(np.mean(np.square(errors))))


GAINS = {"resnext": 0.8, "mobile with ReLU": 0.8}
"""Error of all methods over that of the largest values and rounding to the nearest; random weights and random images
leave little to gain elsewhere."""


@pytest.mark.parametrize("family", FAMILIES)
def test_all_methods_together_against_rounding_to_the_nearest(family: str) -> None:
    model = FAMILIES[family]()
    shape = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = np.random.default_rng(5).normal(size=(160, *shape)).astype(np.float32)
    seen, unseen = x[:64], x[64:]
    tensors = quantizable(model)
    found = collect_statistics(
        model, tensors, [seen], REQUEST, count=len(seen), progress=lambda done, total: None
    )
    assert found.factors is not None
    assert found.logit is not None
    assert found.means is not None
    plain = quantized(model, {name: entry.amax for name, entry in collect(model, tensors, [seen]).items()})
    changed = equalize(model, {name: values.astype(np.float32) for name, values in found.factors.items()})
    means = {name: mean / found.factors[name] for name, mean in found.means.items()}
    nearest = quantized(changed, found.logit)
    learned = learn_rounding(changed, nearest, found.samples, means)
    assert set(learned) == {node.name for node in weighted_nodes(model, tensors)}
    reference = run_onnx(model, unseen)
    before, after = (
        error(reference, plain, unseen),
        error(reference, quantized(changed, found.logit, learned), unseen),
    )
    assert error(reference, changed, unseen) < 1e-4
    assert after < GAINS.get(family, 1.15) * before, (before, after)
    assert found.first is not None


def test_several_outputs_count_alike_and_a_trailing_softmax_hides_nothing() -> None:
    model = FAMILIES["two heads"]()
    ends = [entry.name for entry in model.graph.output]
    assert len(ends) == 2
    model.graph.node.append(helper.make_node("Softmax", [ends[0]], ["p"], name="p"))
    model.graph.output[0].name = "p"
    assert [entry.name for entry in undecided(model).graph.output] == ends


def test_a_gate_keeps_its_unit() -> None:
    model = FAMILIES["two heads"]()
    groups = channel_groups(model)
    assert groups.pinning == ("Sigmoid", "HardSigmoid")
    assert all(groups.free(name) for name in quantizable(model) if name != "x")
