"""Error at the end of each block."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from rescompile.accuracy.error_by_block import SQNR_CEILING_DB, block_errors
from rescompile.errors import GraphError
from rescompile.graph.shared.metadata import set_factors

BLOCKS = {"stem": "relu1", "layer1.0": "layer1.0.relu", "fc": "logits"}
IMAGES = np.random.default_rng(5).normal(size=(3, 3, 8, 8)).astype(np.float32)


def tiny(
    *, half: bool = False, scale: float | None = None, batch: int | str = "batch", width: int = 4
) -> bytes:
    """conv, one residual block and a classifier; ``scale`` puts a Q/DQ pair behind the stem, ``half`` types FP16."""
    random, dtype = np.random.default_rng(6), np.float16 if half else np.float32
    arrays = {
        "w0": random.normal(0, 0.3, (width, 3, 3, 3)),
        "w1": random.normal(0, 0.3, (width, width, 3, 3)),
        "w2": random.normal(0, 0.3, (5, width)),
    }
    weights = [numpy_helper.from_array(value.astype(dtype), name) for name, value in arrays.items()]
    nodes = [helper.make_node("Cast", ["input"], ["image"], to=TensorProto.FLOAT16)] if half else []
    nodes += [
        helper.make_node("Conv", ["image" if half else "input", "w0"], ["conv1"], pads=[1] * 4),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
    ]
    source = "relu1"
    if scale is not None:
        weights += [
            numpy_helper.from_array(dtype(scale), "s"),
            numpy_helper.from_array(np.int8(0), "z"),
        ]
        nodes += [
            helper.make_node("QuantizeLinear", ["relu1", "s", "z"], ["relu1.quantize"]),
            helper.make_node("DequantizeLinear", ["relu1.quantize", "s", "z"], ["relu1.dequantize"]),
        ]
        source = "relu1.dequantize"
    nodes += [
        helper.make_node("Conv", [source, "w1"], ["layer1.0.conv1"], pads=[1] * 4),
        helper.make_node("Add", ["layer1.0.conv1", source], ["layer1.0.add"]),
        helper.make_node("Relu", ["layer1.0.add"], ["layer1.0.relu"]),
        helper.make_node("GlobalAveragePool", ["layer1.0.relu"], ["avgpool"]),
        helper.make_node("Flatten", ["avgpool"], ["flatten"]),
        helper.make_node("Gemm", ["flatten", "w2"], ["half_logits" if half else "logits"], transB=1),
    ]
    if half:
        nodes.append(helper.make_node("Cast", ["half_logits"], ["logits"], to=TensorProto.FLOAT))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 5])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString()
    return serialized


def test_equal_graphs_have_the_largest_sqnr_that_is_reported() -> None:
    errors = block_errors(tiny(), tiny(), IMAGES, BLOCKS)
    assert [error.block for error in errors] == ["stem", "layer1.0", "fc"]
    # the reference graph is optimized, so its sums may be taken in another order
    assert all(100 < error.sqnr_db <= SQNR_CEILING_DB for error in errors)
    assert all(error.cosine == pytest.approx(1.0) for error in errors)


def test_quantization_shows_from_the_block_behind_it_on() -> None:
    stem, block, _ = block_errors(tiny(), tiny(scale=0.05), IMAGES, BLOCKS)
    assert stem.sqnr_db > 100
    assert 15 < block.sqnr_db < 60


def test_a_finer_scale_has_less_error() -> None:
    coarse, fine = (block_errors(tiny(), tiny(scale=s), IMAGES, BLOCKS)[1] for s in (0.2, 0.05))
    assert fine.sqnr_db > coarse.sqnr_db + 6
    assert fine.cosine > coarse.cosine


def test_sqnr_is_that_of_all_images_together() -> None:
    import onnxruntime as ort

    model, other = (onnx.load_model_from_string(tiny(scale=s)) for s in (None, 0.1))
    outputs = []
    for graph in (model, other):
        graph.graph.output.append(onnx.ValueInfoProto(name="layer1.0.relu"))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        outputs.append(session.run(["layer1.0.relu"], {"input": IMAGES})[0].astype(np.float64))
    r, o = outputs
    expected = 10 * np.log10((r**2).sum() / ((o - r) ** 2).sum())
    found = block_errors(tiny(), tiny(scale=0.1), IMAGES, {"b": "layer1.0.relu"})[0]
    assert found.sqnr_db == pytest.approx(expected, abs=1e-3)


def test_the_deployable_graph_is_executed_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime as ort

    levels, make = [], ort.InferenceSession

    def session(model, options, **rest):
        levels.append(options.graph_optimization_level)
        return make(model, options, **rest)

    monkeypatch.setattr(ort, "InferenceSession", session)
    block_errors(tiny(), tiny(scale=0.1), IMAGES, BLOCKS)
    assert levels[1] == ort.GraphOptimizationLevel.ORT_DISABLE_ALL


@pytest.mark.parametrize("scale", [None, 0.05])
def test_graphs_typed_fp16_are_compared_too(scale: float | None) -> None:
    errors = block_errors(tiny(), tiny(half=True, scale=scale), IMAGES, BLOCKS)
    assert 45 < errors[0].sqnr_db < 90
    assert all(error.cosine > 0.99 for error in errors)


def test_a_fixed_batch_size_gives_the_same_figures() -> None:
    free, fixed = (block_errors(tiny(), tiny(scale=0.1, batch=b), IMAGES, BLOCKS) for b in ("batch", 2))
    assert [e.sqnr_db for e in fixed] == pytest.approx([e.sqnr_db for e in free], abs=1e-3)


def test_the_deployable_graph_may_take_its_own_form_of_the_images() -> None:
    (doubled,) = block_errors(tiny(), tiny(), IMAGES, {"stem": "relu1"}, deployable_images=IMAGES * 2)
    assert doubled.sqnr_db == pytest.approx(0.0, abs=1e-4)
    assert doubled.cosine == pytest.approx(1.0)


def test_another_number_of_deployable_images_is_a_defect() -> None:
    with pytest.raises(ValueError, match="3 images"):
        block_errors(tiny(), tiny(), IMAGES, BLOCKS, deployable_images=IMAGES[:2])


def test_a_block_that_is_zero_in_the_reference_only_stays_finite() -> None:
    black = np.zeros_like(IMAGES)
    (same,) = block_errors(tiny(), tiny(), black, {"stem": "relu1"})
    assert (same.sqnr_db, same.cosine) == (SQNR_CEILING_DB, 1.0)
    (other,) = block_errors(tiny(), tiny(), black, {"stem": "relu1"}, deployable_images=IMAGES)
    assert (other.sqnr_db, other.cosine) == (-SQNR_CEILING_DB, 0.0)


@pytest.mark.parametrize("role", ["reference", "deployable"])
def test_a_missing_tensor_is_named_with_its_graph(role: str) -> None:
    known = {"fc": "logits", "layer9.9": "layer9.9.relu"}
    renamed = tiny().replace(b"relu1", b"other")
    models = (renamed, tiny()) if role == "reference" else (tiny(), renamed)
    with pytest.raises(GraphError, match=rf"{role} graph has no tensor 'relu1'"):
        block_errors(*models, IMAGES, BLOCKS)
    with pytest.raises(GraphError, match=r"no tensor 'layer9\.9\.relu'"):
        block_errors(tiny(), tiny(), IMAGES, known)


def test_blocks_of_other_widths_are_refused_by_name() -> None:
    with pytest.raises(GraphError, match=r"block 'stem' has outputs of shape \[4, 8, 8\].*\[6, 8, 8\]"):
        block_errors(tiny(), tiny(width=6), IMAGES, BLOCKS)


def test_channels_that_equalization_divided_are_multiplied_first() -> None:
    model = onnx.load_model_from_string(tiny())
    factors = np.array([0.5, 2, 4, 8], np.float32)  # powers of two, so that nothing is rounded
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if tensor.name == "w0":
            tensor.CopyFrom(numpy_helper.from_array(value / factors.reshape(-1, 1, 1, 1), "w0"))
        if tensor.name == "w1":
            moved = value * factors.reshape(1, -1, 1, 1) / factors.reshape(-1, 1, 1, 1)
            tensor.CopyFrom(numpy_helper.from_array(moved, "w1"))
        if tensor.name == "w2":
            tensor.CopyFrom(numpy_helper.from_array(value * factors, "w2"))
    plain = block_errors(tiny(), model.SerializeToString(), IMAGES, BLOCKS)
    assert plain[0].sqnr_db < 10
    set_factors(model, {"relu1": factors, "layer1.0.relu": factors})
    undone = block_errors(tiny(), model.SerializeToString(), IMAGES, BLOCKS)
    assert all(error.sqnr_db > 100 for error in undone)


def test_values_that_overflow_are_the_worst_error_there_is() -> None:
    with np.errstate(over="ignore"):
        (error,) = block_errors(
            tiny(), tiny(half=True), IMAGES, {"stem": "relu1"}, deployable_images=IMAGES * 1e6
        )
    assert (error.sqnr_db, error.cosine) == (-SQNR_CEILING_DB, 0.0)
