"""Backbones on servers: every output has its name and shape, and the answers are the engine's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import pytest

import rescompile
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.runtime.golden import read_golden
from rescompile.serving.export import ExportConfig, export
from tests.serving.model_config_proto import parse
from tests.serving.triton_backend import as_triton_compiles

SHAPES = {"c2": [16, 24, 32], "c3": [32, 12, 16], "c4": [64, 6, 8]}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "engine"
    model, _ = random_model(find(depth=None, name="resnet8-cifar"), 10, 0)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 24, 32, 3), np.uint8)
    rescompile.build(
        model, outputs=SHAPES, calibration=pixels, size=(24, 32), effort="fast", backend="openvino",
        batch="1:4:4", output=folder,
    )  # fmt: skip
    return folder


def test_triton_serves_all_outputs(backbone: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    export(backbone, ExportConfig(server="triton", output=repository, name="net"))
    config = parse((repository / "net/config.pbtxt").read_text("utf-8"))
    assert {output.name: list(output.dims) for output in config.output} == SHAPES
    assert not (repository / "net/labels.txt").exists()
    parameters = {name: value.string_value for name, value in config.parameters.items()}
    compiled = as_triton_compiles(repository / "net/1/model.xml", config.max_batch_size, parameters)
    with rescompile.load(backbone) as engine:
        images, golden = read_golden(backbone, engine.manifest)
        batch = np.resize(images, (4, *images.shape[1:]))
        expected = engine(batch)
    answers = compiled([batch])
    assert len(golden) == len(SHAPES)
    for name, shape in SHAPES.items():
        assert answers[name].shape == (4, *shape)
        np.testing.assert_array_equal(answers[name], expected[name])


def test_openvinos_server_serves_all_outputs(backbone: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    export(backbone, ExportConfig(server="openvino", output=repository, name="net"))
    model = ov.Core().read_model(repository / "net/1/model.xml")
    found = {name: [side.get_length() for side in list(output.partial_shape)[1:]]
             for output in model.outputs for name in output.get_names() if name in SHAPES}  # fmt: skip
    assert found == SHAPES
