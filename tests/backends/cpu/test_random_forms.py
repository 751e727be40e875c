"""Random INT8 networks in the forms for CPUs: OpenVINO computes what the deployable graph says."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import HealthCheck, assume, given, settings

from calibration.scales import scale_of
from rescompile.backends.cpu.lowering import lower
from rescompile.backends.openvino.compile import compile_model
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.topology import quantized_tensors
from rescompile.manifest import CpuForm
from rescompile.metrics import relative_rms
from tests.calibration.single_operations import run_onnx
from tests.graph.random_graphs import Writer, wild
from tests.graph.test_equalize import inner
from tests.graph.test_random_networks import prepared, shape_of

FORMS: tuple[CpuForm, ...] = ("vnni", "avx2")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(wild())
def test_openvino_computes_every_form_right(drawn: tuple[Writer, onnx.ModelProto]) -> None:
    """Weights are within 63, so that all CPUs compute all forms right."""
    writer, model = drawn
    assume(min(side for size in writer.sizes.values() for side in size) > 0)
    x = np.random.default_rng(2).normal(size=(3, *shape_of(model))).astype(np.float32)
    graph = prepared(model)
    tensors = quantized_tensors(graph)
    amaxes = [max(float(np.abs(values).max()), 1e-3) for values in inner(graph, tensors, x)]
    scales = {name: scale_of(amax, 127) for name, amax in zip(tensors, amaxes, strict=True)}
    made = quantize(graph, scales, narrow=[node.name for node in graph.graph.node])
    expected, exact = run_onnx(made, x), run_onnx(graph, x)
    for form in FORMS:
        answers = compile_model(lower(made, form).SerializeToString())(x).values()
        for found, wanted, fp32 in zip(answers, expected, exact, strict=True):
            # values on a tie between two integers may fall to the other side, and such a step spreads
            assert relative_rms(wanted, found) <= max(0.05, relative_rms(fp32, wanted)), form
