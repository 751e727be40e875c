"""Engines with several outputs answer by name, at any batch size, and test themselves on each output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import rescompile
from rescompile.backends import get_backend
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.engine_directory import write_hashed_manifest
from rescompile.errors import EngineError
from rescompile.manifest import Batch, OutputSpec
from rescompile.runtime.golden import golden_bytes
from tests.backends.engines import manifest, request

BATCH = Batch(2, 2, 3)
OUTPUTS = (
    OutputSpec("map", (-1, 4, 8, 8), "float32", "NCHW", "features"),
    OutputSpec("values", (-1, 4), "float32", "NC", "values"),
)
Made = Callable[..., Path]


def images(count: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=(count, 3, 16, 16)).astype(np.float32)


def two_outputs() -> onnx.ModelProto:
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["map"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["values"]),
    ]
    graph = helper.make_graph(
        nodes, "two",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 16, 16])],
        [
            helper.make_tensor_value_info("map", TensorProto.FLOAT, ["N", 4, 8, 8]),
            helper.make_tensor_value_info("values", TensorProto.FLOAT, ["N", 4]),
        ],
        [numpy_helper.from_array(weight, "weight")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    def make(backend: str, *, spoilt: float = 0.0) -> Path:
        folder = tmp_path / "engine"
        folder.mkdir()
        onnx.save(two_outputs(), folder / "model.onnx")
        get_backend(backend).build(request(folder / "model.onnx", "fp32", BATCH), folder)
        answers = reference_session(folder / "model.onnx", optimize=False).tensors(images(4))
        golden = [answers["map"], answers["values"] * np.float32(1 + spoilt)]
        (folder / "golden.npz").write_bytes(golden_bytes(images(4), *golden))
        described = msgspec.structs.replace(manifest("fp32", backend, BATCH), outputs=OUTPUTS)
        write_hashed_manifest(folder, described)
        return folder

    return make


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_several_outputs_come_by_name_at_any_batch_size(made: Made, backend: str) -> None:
    folder = made(backend)
    with rescompile.load(folder) as engine:
        for count in (1, 2, 7):
            found, waited = engine(images(count)), engine.submit(images(count)).result()
            expected = reference_session(folder / "model.onnx", optimize=False).tensors(images(count))
            assert set(found) == {"map", "values"}
            for name, values in found.items():
                np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-5)
                np.testing.assert_array_equal(values, waited[name])


def test_a_wrong_second_output_fails_the_self_test(made: Made) -> None:
    with pytest.raises(EngineError, match="does not reproduce its golden answers"):
        rescompile.load(made("onnxruntime", spoilt=0.1))
