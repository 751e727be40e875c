"""Factors of an equalized graph: recorded, read back, and undone."""

from __future__ import annotations

import base64

import numpy as np
import onnx
import pytest

from calibration.preprocess import CIFAR
from rescompile.errors import GraphError
from rescompile.graph.half import half
from rescompile.graph.preprocess import take_uint8
from rescompile.graph.shared.metadata import FACTORS, factors_of, in_original_unit, set_factors
from tests.graph.conftest import int8

VALUES = {
    "layer1.0.relu": np.linspace(0.1, 3, 16, dtype=np.float32),
    "relu1": np.full(16, 1 / 3, np.float32),
}


@pytest.fixture
def model() -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(int8("resnet20-cifar"))
    return copy


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].tobytes() == array.tobytes() for name, array in expected.items()
    )


def test_factors_come_back_bit_for_bit_from_a_serialized_graph(model: onnx.ModelProto) -> None:
    set_factors(model, VALUES)
    assert same(factors_of(onnx.load_model_from_string(model.SerializeToString())), VALUES)
    (entry,) = [entry for entry in model.metadata_props if entry.key == "rescompile.factors.relu1"]
    assert base64.b64decode(entry.value) == VALUES["relu1"].astype("<f4").tobytes()


def test_a_graph_without_factors_has_none(model: onnx.ModelProto) -> None:
    assert factors_of(model) == {}


def test_setting_again_replaces_factors_and_leaves_other_metadata(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="author", value="someone")
    set_factors(model, VALUES)
    set_factors(model, {"relu1": VALUES["relu1"]})
    assert same(factors_of(model), {"relu1": VALUES["relu1"]})
    assert [entry.key for entry in model.metadata_props] == ["author", f"{FACTORS}relu1"]


def test_they_survive_the_later_stages(model: onnx.ModelProto) -> None:
    set_factors(model, VALUES)
    assert same(factors_of(half(take_uint8(model, CIFAR))), VALUES)


def test_foreign_metadata_does_not_travel(model: onnx.ModelProto) -> None:
    model.metadata_props.add(key="author", value="someone")
    assert not half(model).metadata_props


@pytest.mark.parametrize("bad", [[], [1.0, 0.0], [np.nan], [np.inf], [-1.0], [[1.0]]])
def test_factors_that_cannot_be_undone_are_a_defect(model: onnx.ModelProto, bad: list[float]) -> None:
    with pytest.raises(ValueError, match="factors of 'relu1'"):
        set_factors(model, {"relu1": np.array(bad, np.float32)})


@pytest.mark.parametrize("text", ["$$$", "AAA=", "", base64.b64encode(np.zeros(2, "<f4").tobytes()).decode()])
def test_damaged_entries_are_named(model: onnx.ModelProto, text: str) -> None:
    model.metadata_props.add(key=f"{FACTORS}relu1", value=text)
    with pytest.raises(GraphError, match="factors of 'relu1' are"):
        factors_of(model)


def test_values_come_back_channel_by_channel() -> None:
    values = np.arange(12, dtype=np.float16).reshape(3, 2, 2)
    factors = {"relu1": np.array([1, 2, 0.5], np.float32)}
    found = in_original_unit("relu1", values, factors)
    assert found.dtype == np.float32
    assert np.array_equal(found, values * np.array([1, 2, 0.5]).reshape(3, 1, 1))
    assert in_original_unit("relu2", values, factors) is values
    with pytest.raises(GraphError, match="4 channels and 3 factors"):
        in_original_unit("relu1", np.zeros((4, 1, 1), np.float32), factors)
