"""The noise model against brute force, and the choice that is made by it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from calibration.collect_statistics import Samples
from calibration.errors import CalibrationError
from calibration.methods.channel_groups import channel_groups
from calibration.methods.equalization import Equalized, best_log_steps, equalize, total_noise
from calibration.methods.noise import (
    ActivationNoise,
    NoiseModel,
    WeightNoise,
    bounded_tensors,
    noise_model,
    tail_weight,
)
from calibration.statistics.channels import BINS, ChannelHistograms, ChannelObserver
from calibration.statistics.collect import collect_channels
from calibration.statistics.sensitivity import Sensitivity, measure_sensitivity
from rescompile.building.source import Source
from rescompile.graph.shared.topology import quantized_tensors
from tests.graph.conftest import folded, images
from tests.graph.random_graphs import FAMILIES


def observed(x: NDArray[np.float32]) -> ChannelHistograms:
    observer = ChannelObserver("t")
    observer.update(x)
    return observer.histograms()


def quantization_error(x: NDArray[np.float32], step: float, levels: int = 127) -> float:
    rounded = np.clip(np.rint(x / step), -levels, levels) * step
    return float(np.square(rounded - x.astype(np.float64)).mean())


@pytest.mark.parametrize("levels", [127, 255])
@pytest.mark.parametrize("octaves", [-11.0, -10.0, -7.0, -6.0, -4.0, -1.0])
def test_expected_error_is_that_of_rounding_and_clipping(octaves: float, levels: int) -> None:
    x = np.abs(np.random.default_rng(0).normal(size=(40, 1, 50, 50))).astype(np.float32)
    model = ActivationNoise(observed(x), np.ones(1), 1.0, tail=0.0, levels=levels)
    step = float(x.max()) * 2.0**octaves
    assert model(np.log([step]))[0][0] == pytest.approx(quantization_error(x, step, levels), rel=0.06)


def test_a_tail_makes_clipping_dearer_and_rounding_hardly() -> None:
    x = np.abs(np.random.default_rng(1).normal(size=(10, 1, 30, 30))).astype(np.float32)
    plain, tailed = (ActivationNoise(observed(x), np.ones(1), 1.0, tail=tail) for tail in (0.0, 1.0))
    clipped, fine = np.log([x.max() / 127]), np.log([x.max() / 40])
    assert tailed(clipped)[0][0] > 2 * plain(clipped)[0][0]
    assert tailed(fine)[0][0] == pytest.approx(plain(fine)[0][0], rel=0.3)


def test_the_tail_falls_with_the_number_of_images_and_of_values() -> None:
    seen = {count: tail_weight(observed(np.ones((count, 1, 4, 4), np.float32))) for count in (1, 100, 400)}
    assert (seen[1], seen[100], seen[400]) == pytest.approx((1.5 / 4, 1 / 4, 0.25 / 4))


def test_pixels_and_what_relu6_makes_have_no_tail() -> None:
    assert bounded_tensors(folded("resnet20-cifar", None)) == {"input"}
    model = FAMILIES["mobile"]()
    assert bounded_tensors(model) == {
        "x",
        *(node.output[0] for node in model.graph.node if node.op_type == "Clip"),
    }


def test_weight_noise_is_the_sum_it_says() -> None:
    rng = np.random.default_rng(2)
    weight, sensitivity = rng.normal(size=(5, 4, 3, 3)).astype(np.float32), rng.random((5, 4))
    factors = rng.uniform(0.5, 2, 4)
    rows = np.abs(weight).max(axis=(2, 3)) * factors
    expected = (sensitivity / factors**2 * (rows.max(axis=1, keepdims=True) / 127) ** 2 / 12).sum()
    found, _ = WeightNoise(weight, sensitivity, 1.0)(np.log(factors))
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module", params=["resnet18", "resnet20-cifar", "resnet20-cifar-A"])
def model(request: pytest.FixtureRequest) -> tuple[onnx.ModelProto, NoiseModel, Sensitivity]:
    name, _, shortcut = (
        request.param.partition("-A") if request.param.endswith("-A") else (request.param, "", "")
    )
    graph = folded(name, "A" if request.param.endswith("-A") else None)
    assert not shortcut
    tensors = quantized_tensors(graph)
    pixels = images(name).astype(np.float32)
    channels = collect_channels(graph, tensors, [pixels])
    sensitivity = measure_sensitivity(graph, tensors, list(pixels), channels)
    return graph, noise_model(graph, channel_groups(graph), channels, sensitivity), sensitivity


def test_slopes_are_those_of_the_total(model: tuple[onnx.ModelProto, NoiseModel, Sensitivity]) -> None:
    _, whole, _ = model
    rng = np.random.default_rng(3)
    factors = rng.normal(size=whole.groups.count) * 0.3
    factors[0] = 0.0
    steps = best_log_steps(whole, factors) + rng.normal(size=len(whole.activations)) * 0.3
    _, by_factor, by_step = total_noise(whole, factors, steps)
    along_factors, along_steps = rng.normal(size=factors.shape), rng.normal(size=steps.shape)
    along_factors[0] = 0.0
    width = 1e-5
    ahead, _, _ = total_noise(whole, factors + width * along_factors, steps + width * along_steps)
    behind, _, _ = total_noise(whole, factors - width * along_factors, steps - width * along_steps)
    expected = by_factor @ along_factors + by_step @ along_steps
    assert (ahead - behind) / (2 * width) == pytest.approx(expected, rel=2e-2)


def expected_error(model: NoiseModel, chosen: Equalized) -> float:
    log_factors = np.zeros(model.groups.count)
    for name, ids in model.groups.of.items():
        log_factors[ids] = np.log(chosen.factors[name].astype(np.float64))
    steps = [chosen.thresholds[name] / noise.levels for name, noise in model.activations.items()]
    return total_noise(model, log_factors, np.log(steps))[0]


def test_equalizing_lowers_the_expected_error(
    model: tuple[onnx.ModelProto, NoiseModel, Sensitivity],
) -> None:
    graph, whole, _ = model
    plain, chosen = equalize(whole, channels=False), equalize(whole)
    assert expected_error(whole, chosen) < 0.9 * expected_error(whole, plain)
    assert all((factors == 1).all() for factors in plain.factors.values())
    assert (chosen.factors[graph.graph.input[0].name] == 1).all()
    assert (chosen.factors[graph.graph.output[0].name] == 1).all()
    assert list(chosen.thresholds) == quantized_tensors(graph)


def test_channels_that_are_added_share_their_factors() -> None:
    groups = channel_groups(folded("resnet20-cifar", "A"))
    assert np.array_equal(groups.of["layer1.0.relu"], groups.of["layer1.2.relu"])
    assert np.array_equal(groups.of["layer2.0.relu"][8:24], groups.of["layer1.2.relu"])
    assert not set(groups.of["layer2.0.relu1"]) & set(groups.of["layer2.0.relu"])
    assert set(groups.of["input"]) == {0} == set(groups.of["logits"])


def test_gradients_are_those_of_finite_differences(small_source: Source) -> None:
    """G of the classifier's input is known: the squared norm of its weight's columns."""
    graph = small_source.graph
    x = np.random.default_rng(4).normal(size=(64, 3, 32, 32)).astype(np.float32)
    weight = next(entry for entry in graph.graph.initializer if entry.name == "fc.weight")
    channels = collect_channels(graph, quantized_tensors(graph), [x])
    found = measure_sensitivity(graph, ["flatten"], x, channels).activations["flatten"]
    expected = np.square(onnx.numpy_helper.to_array(weight).astype(np.float64)).sum(axis=0)
    assert np.corrcoef(found, expected)[0, 1] > 0.5
    assert found.sum() == pytest.approx(expected.sum(), rel=0.2)


def test_no_images_and_unknown_operations_are_refused(small_source: Source) -> None:
    with pytest.raises(CalibrationError, match="no calibration images to take gradients of"):
        measure_sensitivity(small_source.graph, [], [], {})
    strange = onnx.ModelProto()
    strange.CopyFrom(small_source.graph)
    next(node for node in strange.graph.node if node.op_type == "Relu").op_type = "Sinh"
    with pytest.raises(CalibrationError, match=r"is a Sinh.*--effort fast"):
        measure_sensitivity(strange, [], [np.zeros((3, 32, 32), np.float32)], {})
    assert not channel_groups(strange).of["relu1"].any()


def test_samples_are_evenly_chosen_whatever_the_batches() -> None:
    numbers = np.arange(11, dtype=np.float32)[:, None]
    for size in (1, 4, 11):
        samples = Samples(11, 3)
        passed = list(samples.watch(numbers[i : i + size] for i in range(0, 11, size)))
        assert np.array_equal(np.concatenate(passed), numbers)
        assert [float(image[0]) for image in samples.spread(3)] == [0.0, 5.0, 10.0]
        assert [float(image[0]) for image in samples.spread(2)] == [0.0, 10.0]


def test_bins_are_finer_than_the_steps() -> None:
    assert BINS >= 2 * 127
