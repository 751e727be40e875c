"""ONNX Runtime's own form of an INT8 graph: integer kernels throughout, and nearly the answers of the graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from rescompile.backends.cpu import forms
from rescompile.backends.onnxruntime import OnnxRuntime, reference_session
from rescompile.backends.onnxruntime_form import lower_for_onnxruntime
from rescompile.building.deployable import fold_within_int32
from rescompile.engine_files import EngineFiles
from rescompile.errors import BackendError
from rescompile.graph.quantize import quantize
from rescompile.graph.shared.topology import full_range_tensors, quantized_tensors
from rescompile.manifest import FileDigest
from rescompile.metrics import relative_rms
from tests.backends.engines import manifest, request
from tests.backends.graphs import residual_net, sample_images, saved
from tests.graph.conftest import folded, images, run

NAME, CONVOLUTIONS, ADDITIONS = "resnet20-cifar", 19, 9


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    """ResNet-20 with option A, quantized with the full range where that is possible."""
    model = folded(NAME)
    full, tensors = full_range_tensors(model, widest=64), quantized_tensors(model)
    seen = run(model, images(NAME), outputs=tensors)
    scales = {name: float(np.abs(seen[name]).max()) / (255 if name in full else 127) for name in tensors}
    return fold_within_int32(quantize(model, scales, full_range=full))


def fused(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime makes of ``model``."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def test_all_convolutions_and_the_classifier_run_in_integers(graph: onnx.ModelProto, tmp_path: Path) -> None:
    before = fused(graph, tmp_path)
    assert before["QLinearConv"] < 10, "the case shows what it is to show"
    lowered, rounded = lower_for_onnxruntime(graph, "vnni")
    after = fused(lowered, tmp_path)
    assert rounded == ADDITIONS
    assert after["QLinearConv"] == CONVOLUTIONS
    assert after["QLinearAdd"] == ADDITIONS
    assert after["QGemm"] == 1


def test_only_the_branches_are_rounded_once_more(graph: onnx.ModelProto) -> None:
    lowered, _ = lower_for_onnxruntime(graph, "vnni")
    expected, found = (run(model, images(NAME))["logits"] for model in (graph, lowered))
    assert relative_rms(expected, found) < 0.05
    straight = onnx.ModelProto()
    straight.CopyFrom(lowered)
    for node in straight.graph.node:
        if node.op_type == "Add":
            node.input[:] = [name.removesuffix(".branch.restored") for name in node.input]
    without = relative_rms(expected, run(straight, images(NAME))["logits"])
    assert without < relative_rms(expected, found), "sums on a border alone differ"


def test_no_sum_saturates_that_does_not_saturate_in_the_graph() -> None:
    lowered, rounded = lower_for_onnxruntime(residual_net("int8"), "vnni")
    assert rounded == 1
    values = {each.name: numpy_helper.to_array(each) for each in lowered.graph.initializer}
    names = [node.input[0] for node in lowered.graph.node if node.output[0].endswith(".branch.quantized")]
    seen = reference_session(lowered.SerializeToString(), optimize=False, outputs=names).tensors(
        sample_images(8)
    )
    for name in names:
        scale, zero = (values[f"{name}.branch.{part}"].astype(np.float64) for part in ("scale", "zero_point"))
        assert seen[name].min() >= -(zero + 0.5) * scale
        assert seen[name].max() <= (255.5 - zero) * scale


def test_a_sum_that_others_read_stays_as_it_is() -> None:
    model = residual_net("int8")
    added = next(node.output[0] for node in model.graph.node if node.op_type == "Add")
    model.graph.node.append(helper.make_node("Identity", [added], ["sum"]))
    model.graph.output.append(onnx.ValueInfoProto(name="sum"))
    assert lower_for_onnxruntime(model, "vnni")[1] == 0


def test_a_bias_beyond_int32_is_refused() -> None:
    model = residual_net("int8")
    for tensor in model.graph.initializer:
        if tensor.name == "conv1.weight_scale":
            tensor.CopyFrom(numpy_helper.from_array(np.full(16, 1e-15, np.float32), tensor.name))
    with pytest.raises(BackendError, match=r"the bias of 'conv1' does not fit into int32.*--cpu-form avx2"):
        lower_for_onnxruntime(model, "vnni")


@pytest.mark.parametrize("exact", [True, False])
def test_the_form_runs_where_the_cpu_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exact: bool
) -> None:
    path = saved(residual_net("int8"), tmp_path)
    payload = OnnxRuntime().in_form("vnni").build(request(path, "int8"), tmp_path)
    assert payload.files == ("model.onnx", "onnxruntime.onnx")
    assert any("branch of 1 residual addition once more" in note for note in payload.notes)
    described = msgspec.structs.replace(
        manifest("int8", "onnxruntime"), cpu_form=payload.cpu_form,
        files={name: FileDigest("0" * 64, 1) for name in payload.files},
    )  # fmt: skip
    monkeypatch.setattr(forms, "computes_exactly", lambda form: exact)
    if exact:
        runner = OnnxRuntime().load(EngineFiles(tmp_path), described)
    else:
        with pytest.warns(UserWarning, match=r"has the form vnni, which .*: model\.onnx runs instead"):
            runner = OnnxRuntime().load(EngineFiles(tmp_path), described)
    found, expected = runner(sample_images(3)), reference_session(path, optimize=False)(sample_images(3))
    assert np.array_equal(found, expected) is not exact
    assert OnnxRuntime().more_files(payload.cpu_form) == (("onnxruntime.onnx",) if exact else ())
