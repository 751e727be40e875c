"""Statistics of the network in bfloat16 beside those in float32."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from calibration.errors import CalibrationError
from calibration.statistics.channels import ChannelObserver, part_of
from calibration.statistics.collect import collect_channels
from calibration.statistics.half import HalfNetwork
from rescompile.graph.shared.topology import quantized_tensors
from tests.graph.conftest import folded, images


def test_statistics_are_nearly_those_in_float32() -> None:
    graph, pixels = folded("resnet20-cifar", None), images("resnet20-cifar").astype(np.float32)
    tensors = quantized_tensors(graph)
    exact = collect_channels(graph, tensors, [pixels[:1], pixels[1:]])
    half = collect_channels(graph, tensors, [pixels[:1], pixels[1:]], half=HalfNetwork(graph))
    assert list(half) == list(exact)
    first = graph.graph.input[0].name
    assert np.array_equal(half[first].counts, exact[first].counts), "images stay in float32"
    for name in tensors:
        assert half[name].counts.sum() == exact[name].counts.sum()
        assert half[name].images == exact[name].images
        size = exact[name].amax.max()
        np.testing.assert_allclose(half[name].amax, exact[name].amax, atol=0.03 * size)
        np.testing.assert_allclose(half[name].means, exact[name].means, atol=0.03 * size)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (2, 3, 40, 40), (4, 6)])
def test_a_tensor_of_pytorch_is_counted_as_an_array(shape: tuple[int, ...]) -> None:
    import torch

    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    array, tensor = ChannelObserver("x"), ChannelObserver("x")
    array.update(values)
    tensor.add(part_of(torch.from_numpy(values)))
    first, second = array.histograms(), tensor.histograms()
    assert np.array_equal(first.counts, second.counts)
    assert np.array_equal(first.amax, second.amax)
    np.testing.assert_allclose(first.means, second.means, atol=1e-5)


def test_no_images_and_networks_that_do_not_run_so_are_refused() -> None:
    graph = folded("resnet20-cifar", None)
    with pytest.raises(CalibrationError, match="no calibration images"):
        collect_channels(graph, ["relu1"], [], half=HalfNetwork(graph))
    with pytest.raises(CalibrationError, match="no tensor 'relu'"):
        collect_channels(graph, ["relu"], [], half=HalfNetwork(graph))
    broken = onnx.ModelProto()
    broken.CopyFrom(graph)
    broken.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    with pytest.raises(CalibrationError, match="does not run in bfloat16"):
        HalfNetwork(broken)
