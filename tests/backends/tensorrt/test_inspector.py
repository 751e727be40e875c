"""Fused residual adds are counted in the layer JSON of TensorRT 10 and of 11."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rescompile.backends.tensorrt.inspector import count_fused, fused_adds, onnx_names, reads_int8
from tests.backends.graphs import residual_net, saved

ADDS, CONVS = {"layer1.0.add", "layer2.0.add"}, {"conv1", "layer1.0.conv2", "layer2.0.conv2"}
INT8_10 = [
    {"Name": "x", "Location": "Device", "Dimensions": [1, 64, 56, 56], "Format/Datatype": "Int8 NC/32HW32"}
]
INT8_11 = [{"Name": "x", "Location": "Device", "Format": "NC/32HW32", "Datatype": "Int8"}]
HALF_10 = [{"Name": "x", "Format/Datatype": "Half NC/8HW8"}]


def information(*layers: Any, bindings: str = "Bindings") -> str:
    return json.dumps({"Layers": layers, bindings: ["images", "logits"]})


def layer(name: str, inputs: list[dict[str, Any]], metadata: str = "") -> dict[str, Any]:
    return {
        "Name": name,
        "LayerType": "CaskConvolution",
        "Inputs": inputs,
        "Outputs": [],
        "Metadata": metadata,
    }


@pytest.mark.parametrize(("inputs", "bindings"), [(INT8_10, "Bindings"), (INT8_11, "I/O Tensors")])
def test_both_forms_are_read(inputs: list[dict[str, Any]], bindings: str) -> None:
    text = information(
        layer("layer1.0.conv2.weight + layer1.0.conv2 + layer1.0.add + layer1.0.relu", inputs),
        layer("layer2.0.conv2", inputs),
        layer("layer2.0.add", inputs),
        bindings=bindings,
    )
    assert count_fused(text, ADDS, CONVS, integer=True) == 1


def test_names_are_found_in_the_metadata_too() -> None:
    metadata = "[ONNX Layer: layer1.0.conv2]\x1e[ONNX Layer: layer1.0.add]"
    assert count_fused(information(layer("myl_7", INT8_10, metadata)), ADDS, CONVS, integer=True) == 1


def test_a_float_layer_counts_only_in_a_float_engine() -> None:
    text = information(layer("layer1.0.conv2 + layer1.0.add", HALF_10))
    assert count_fused(text, ADDS, CONVS, integer=True) == 0
    assert count_fused(text, ADDS, CONVS, integer=False) == 1


def test_names_must_match_whole() -> None:
    assert onnx_names({"Name": "layer11.0.add + conv10"}) == {"layer11.0.add", "conv10"}
    text = information(layer("layer1.0.conv2 + layer1.0.add.cast", INT8_10), layer("layer2.0.add", INT8_10))
    assert count_fused(text, ADDS, CONVS, integer=True) == 0


@pytest.mark.parametrize("text", [information(), information("layer1.0.conv2 + layer1.0.add"), "{}"])
def test_an_engine_that_hides_its_layers_is_not_called_unfused(text: str) -> None:
    assert count_fused(text, ADDS, CONVS, integer=True) is None


def test_unsigned_and_float_inputs_are_not_int8() -> None:
    kinds = ["UInt8 Linear", "Half NCHW", "Float", "FP8"]
    assert not any(reads_int8(layer("x", [{"Format/Datatype": kind}])) for kind in kinds)
    assert not reads_int8({"Name": "x"})


def test_names_come_from_the_graph_itself(tmp_path: Path) -> None:
    path = saved(residual_net("int8"), tmp_path)
    text = information(layer("layer2.0.conv2 + layer2.0.add + layer2.0.relu", INT8_10))
    assert fused_adds(text, path, integer=True) == 1
