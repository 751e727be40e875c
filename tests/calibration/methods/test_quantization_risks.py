"""Risks are found in weights and in activations, and ordinary checkpoints have none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from calibration.methods.quantization_risks import (
    activation_risks,
    weight_risks,
)
from calibration.statistics.channels import ChannelHistograms, ChannelObserver
from rescompile.building.source import Source
from tests.calibration.statistics.histograms import histogram_of

RNG = np.random.default_rng(0)


def channels(array: NDArray[np.float32]) -> ChannelHistograms:
    observer = ChannelObserver("t")
    observer.update(array)
    return observer.histograms()


def with_weight(source: Source, name: str, change: float) -> onnx.ModelProto:
    """The graph with the first weight of layer ``name`` multiplied by ``change``."""
    model = onnx.ModelProto()
    model.CopyFrom(source.graph)
    entry = next(entry for entry in model.graph.initializer if entry.name == f"{name}.weight")
    weight = numpy_helper.to_array(entry).copy()
    weight[0, 0, 0, 0] *= change
    entry.CopyFrom(numpy_helper.from_array(weight, entry.name))
    return model


def test_ordinary_networks_have_no_risks(small_source: Source) -> None:
    assert weight_risks(small_source.graph) == ()
    relu = channels(np.maximum(RNG.normal(size=(20, 16, 8, 8)), 0).astype(np.float32))
    assert activation_risks({"t": relu.merged()}, {"t": relu}) == ()
    assert activation_risks({"t": relu.merged()}, None) == ()


def test_a_weight_far_above_the_rest_is_named_with_its_layer(small_source: Source) -> None:
    (found,) = weight_risks(with_weight(small_source, "layer2.1.conv1", 3000.0))
    assert (found.kind, found.place) == ("heavy-tailed weights", "layer2.1.conv1")
    assert "in 1 layer, worst in layer2.1.conv1" in found.sentence


def test_a_network_of_zeros_has_no_heavy_weights(small_source: Source) -> None:
    assert weight_risks(with_weight(small_source, "conv1", 0.0)) == ()


@pytest.mark.parametrize("by_channel", [True, False])
def test_an_outlier_channel_is_found_with_and_without_channel_histograms(by_channel: bool) -> None:
    x = np.maximum(RNG.normal(size=(40, 64, 8, 8)), 0).astype(np.float32)
    x[0, 5, 0, 0] = 100
    seen = channels(x)
    (found,) = activation_risks({"t": seen.merged()}, {"t": seen} if by_channel else None)
    assert found.kind == "outlier activations"
    assert "in 1 tensor, worst in t" in found.sentence


def test_many_dead_channels_are_counted_and_few_are_normal() -> None:
    x = np.maximum(RNG.normal(size=(10, 10, 8, 8)), 0).astype(np.float32)
    x[:, :2] = 0
    assert activation_risks({}, {"t": channels(x)}) == ()
    x[:, :6] = 0
    (found,) = activation_risks({}, {"t": channels(x)})
    assert (found.kind, found.place) == ("dead channels", "t")
    assert "60 % of t" in found.sentence


def test_a_tensor_that_is_all_zero_divides_by_nothing() -> None:
    zero = np.zeros((2, 3, 4, 4), np.float32)
    seen = channels(zero)
    (found,) = activation_risks({"t": histogram_of(zero)}, {"t": seen})
    assert "100 % of t" in found.sentence
    assert activation_risks({"t": histogram_of(zero)}, None) == ()
