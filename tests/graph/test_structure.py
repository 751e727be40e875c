"""Graphs of other exporters get our names and keep their numbers, or one sentence says why not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from rescompile.errors import GraphError
from rescompile.graph.fold import fold
from rescompile.graph.placement import place
from rescompile.graph.shared.metadata import float_reasons
from rescompile.graph.shared.topology import block_outputs, quantized_tensors
from rescompile.graph.simplify import simplify
from rescompile.graph.structure import ResNetForm, structure
from tests.calibration.single_operations import run_onnx
from tests.graph.conftest import SIZES, exported, folded, images, network, run
from tests.graph.random_graphs import Writer


def foreign(folder: Path, name: str, shortcut: str | None = None, **options: Any) -> onnx.ModelProto:
    """The network as torch.onnx writes it."""
    spec, model = network(name, shortcut)
    size, path = SIZES[spec.family], folder / "foreign.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(1, 3, size, size),), path, verbose=False, **options)
    model.eval()
    return onnx.load(path)


def ours(model: onnx.ModelProto) -> tuple[onnx.ModelProto, ResNetForm | None]:
    named, found = structure(fold(simplify(model).graph))
    return named, found.form


def signature(model: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """Arithmetic nodes by name, with operator and number of inputs; slices may be spelled differently."""
    return {n.name: (n.op_type, len(n.input)) for n in model.graph.node if n.op_type not in ("Slice", "Pad")}


def test_the_torchscript_exporter_with_batch_norm_kept(tmp_path: Path) -> None:
    model = foreign(tmp_path, "resnet50", dynamo=False, training=torch.onnx.TrainingMode.PRESERVE,
                    do_constant_folding=False)  # fmt: skip
    assert any(node.op_type == "BatchNormalization" for node in model.graph.node)
    graph, form = ours(model)
    assert form == ResNetForm((3, 4, 6, 3), 3, has_maxpool=True, option_a=False, width=16, plain_width=True)
    assert form.depth == 50
    assert signature(graph) == signature(folded("resnet50"))
    assert np.allclose(run(graph, images("resnet50"))["logits"], run(folded("resnet50"), images("resnet50"))["logits"],
                       atol=1e-4)  # fmt: skip


def test_the_dynamo_exporter_with_batch_norm_folded_and_option_a(tmp_path: Path) -> None:
    model = foreign(tmp_path, "resnet20-cifar", "A", dynamo=True)
    assert {"ReduceMean", "Reshape", "Pad"} <= {node.op_type for node in model.graph.node}
    graph, form = ours(model)
    assert form == ResNetForm((3, 3, 3), 2, has_maxpool=False, option_a=True, width=16, plain_width=True)
    assert signature(graph) == signature(folded("resnet20-cifar", "A"))
    x = images("resnet20-cifar", count=3)
    assert np.allclose(run(graph, x)["logits"], run(folded("resnet20-cifar", "A"), x)["logits"], atol=1e-4)


@pytest.mark.parametrize("kept", [True, False])
def test_the_torchscript_exporter_with_option_a(tmp_path: Path, kept: bool) -> None:
    options: dict[str, Any] = {"dynamo": False}
    if kept:
        options |= {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    graph, form = ours(foreign(tmp_path, "resnet20-cifar", "A", **options))
    assert form is not None
    assert form.option_a
    x = images("resnet20-cifar", count=3)
    assert np.allclose(run(graph, x)["logits"], run(folded("resnet20-cifar", "A"), x)["logits"], atol=1e-4)


def test_our_own_graph_is_recognised_as_itself() -> None:
    for name in ("resnet18", "resnet20-cifar-bottleneck"):
        assert signature(ours(exported(name))[0]) == signature(folded(name))
        assert signature(ours(folded(name))[0]) == signature(folded(name))


def changed(name: str = "resnet18") -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(folded(name))
    return model


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def test_fp16_weights_between_casts_become_fp32() -> None:
    from rescompile.graph.half import half

    graph, _ = ours(half(folded("resnet18")))
    assert all(t.data_type != onnx.TensorProto.FLOAT16 for t in graph.graph.initializer)
    x = images("resnet18")
    expected = run(folded("resnet18"), x)["logits"]
    assert np.linalg.norm(run(graph, x)["logits"] - expected) < 1e-2 * np.linalg.norm(expected)


def test_a_classifier_of_matmul_and_add_and_a_pad_before_the_stem_are_understood() -> None:
    model = changed()
    fc, conv1 = node(model, "fc"), node(model, "conv1")
    weight = next(t for t in model.graph.initializer if t.name == fc.input[1])
    transposed = numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(weight).T), weight.name)
    weight.CopyFrom(transposed)
    model.graph.node.remove(fc)
    model.graph.node.extend([
        helper.make_node("MatMul", [fc.input[0], fc.input[1]], ["product"], name="mm"),
        helper.make_node("Add", [fc.input[2], "product"], ["logits"], name="plus"),
    ])  # fmt: skip
    pads = numpy_helper.from_array(np.array([0, 0, 3, 3, 0, 0, 3, 3], np.int64), "pads")
    model.graph.initializer.append(pads)
    model.graph.node.insert(0, helper.make_node("Pad", ["input", "pads"], ["padded"], name="pad"))
    conv1.input[0] = "padded"
    next(a for a in conv1.attribute if a.name == "pads").ints[:] = [0] * 4
    graph, _ = ours(model)
    assert signature(graph) == signature(folded("resnet18"))
    x = images("resnet18")
    assert np.allclose(run(graph, x)["logits"], run(folded("resnet18"), x)["logits"], atol=1e-5)


def test_a_softmax_at_the_end_is_taken_off_with_a_note() -> None:
    model = changed()
    node(model, "fc").output[0] = "raw"
    model.graph.node.append(helper.make_node("Softmax", ["raw"], ["logits"], name="prob"))
    found = simplify(model)
    assert (found.endings, found.graph.graph.output[0].name) == (("Softmax",), "raw")
    assert "ends in Softmax, which was taken off" in found.notes[0]


def test_a_choice_at_the_end_is_explained() -> None:
    model = changed()
    node(model, "fc").output[0] = "raw"
    model.graph.node.append(helper.make_node("ArgMax", ["raw"], ["logits"], name="best", axis=1))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(GraphError, match=r"ends in 'best' \(ArgMax\).*export the network without it"):
        simplify(model)


def test_an_operator_that_no_rule_knows_is_kept_in_floating_point() -> None:
    model = changed()
    node(model, "layer2.0.relu1").op_type = "Sigmoid"
    named, _ = structure(fold(simplify(model).graph))
    placed = place(named)
    assert float_reasons(placed) == {"layer2.0.sigmoid1": "Sigmoid"}
    assert "layer2.0.sigmoid1" in quantized_tensors(placed)


def test_a_quantized_graph_is_refused() -> None:
    from tests.graph.conftest import int8

    with pytest.raises(GraphError, match=r"quantized already.*pass the float model"):
        simplify(int8("resnet18"))


def test_an_old_opset_is_refused() -> None:
    model = changed()
    model.opset_import[0].version = 6
    with pytest.raises(GraphError, match="opset 6; rescompile reads 7 and newer"):
        simplify(model)


def test_an_open_image_size_is_asked_for() -> None:
    model = changed()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    with pytest.raises(GraphError, match=r"leaves the size of its images open.*--crop 224"):
        simplify(model)
    assert shape_of(simplify(model, size=(64, 64)).graph) == [1, 3, 64, 64]


def shape_of(model: onnx.ModelProto) -> list[int]:
    return [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]


def test_two_outputs_keep_their_names() -> None:
    model = changed()
    model.graph.output.append(helper.make_tensor_value_info("avgpool", 1, None))
    named, found = structure(fold(simplify(model).graph), ("scores", "features"))
    assert [output.name for output in named.graph.output] == ["scores", "features"]
    assert found.form is None
    assert list(block_outputs(named))[-1] == "fc"
    x = images("resnet18")
    ours_, theirs = run(named, x, ["scores", "features"]), run(model, x, ["logits", "avgpool"])
    assert np.allclose(ours_["scores"], theirs["logits"], atol=1e-4)
    assert np.allclose(ours_["features"], theirs["avgpool"], atol=1e-4)


def test_a_last_convolution_is_not_named_as_the_stem() -> None:
    """Both are a convolution and a ReLU; with one name for two tensors the graph would not be acyclic."""
    writer = Writer((3, 8, 8))
    x = writer.relu(writer.conv("x", 8))
    x = writer.relu(writer.sum(writer.conv(writer.relu(writer.conv(x, 8)), 8), x))
    model = writer.done(x, writer.relu(writer.conv(x, 8)))
    named, found = structure(fold(simplify(model).graph), ("features", "mask"))
    names = [node.name for node in named.graph.node]
    assert len(set(names)) == len(names)
    assert found.blocks == {"stem": "relu1", "layer1.0": "layer1.0.relu", "fc": "fc.relu1"}
    pixels = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    for expected, answer in zip(run_onnx(model, pixels), run_onnx(named, pixels), strict=True):
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_a_plain_network_has_a_unit_for_each_layer() -> None:
    model = changed()
    for add in [n for n in model.graph.node if n.op_type == "Add"]:
        relu = next(n for n in model.graph.node if add.output[0] in n.input)
        relu.input[0] = next(name for name in add.input if ".conv" in name)
        model.graph.node.remove(add)
    named, found = structure(fold(simplify(model).graph))
    assert found.residual_adds == 0
    assert list(block_outputs(named)) == [f"unit{number}" for number in range(1, 19)]
