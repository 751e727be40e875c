"""The network in PyTorch against ONNX Runtime, and learned rounding against rounding to the nearest."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from calibration.errors import CalibrationError
from calibration.methods.rounding import first_moments, learn_first, learn_rounding, round_with_feedback
from calibration.network import Network
from calibration.scales import NARROW_LEVELS, weight_scales
from rescompile.graph.export import export
from rescompile.graph.fold import fold
from rescompile.graph.quantize import quantize
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from tests.graph.conftest import folded, images, int8, run

NETWORKS = [
    ("resnet18", None),
    ("resnet20-cifar-bottleneck", None),
    ("resnet20-cifar", "A"),
    ("resnet20-cifar", "B"),
]


@pytest.mark.parametrize(("name", "shortcut"), NETWORKS)
def test_the_network_computes_what_onnx_runtime_does(name: str, shortcut: str | None) -> None:
    graph = folded(name, shortcut)
    with torch.no_grad():
        found = Network(graph).run(torch.from_numpy(images(name))).numpy()
    expected = run(graph, images(name))["logits"]
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_quantized_network_holds_the_same_integers() -> None:
    graph, seen = int8("resnet20-cifar", "A"), {}
    network = Network(graph)
    with torch.no_grad():
        network.run(
            torch.from_numpy(images("resnet20-cifar")),
            lambda node, value: seen.update({node.output: value.numpy()}),
        )
    names = [name for name in seen if name.endswith(".quantize")]
    expected = run(graph, images("resnet20-cifar"), outputs=[*names, "logits"])
    # both sum in fp32, in another order: a tie falls the other way now and then, and later layers spread that
    for name in names[:4]:
        steps = np.abs(seen[name].astype(int) - expected[name])
        assert steps.max() <= 1
        assert steps.mean() < 1e-3
    error = np.square(seen["logits"] - expected["logits"]).sum() / np.square(expected["logits"]).sum()
    assert error < 0.05**2
    assert seen[names[0]].dtype == np.int8


def test_an_operation_that_is_not_known_is_refused() -> None:
    strange = onnx.ModelProto()
    strange.CopyFrom(folded("resnet20-cifar"))
    strange.graph.node[1].op_type = "Sinh"
    with pytest.raises(CalibrationError, match="'relu1' is a Sinh"):
        Network(strange)


def test_feedback_beats_the_nearest_on_correlated_inputs_and_stays_on_the_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 200, generator=generator)
    x = torch.randn(200, 40, generator=generator) @ torch.randn(40, 4000, generator=generator)
    covariance = x @ x.t() / 4000
    covariance.diagonal().add_(0.01 * covariance.diagonal().mean())
    scales = torch.from_numpy(weight_scales(weight.numpy()))
    nearest = (weight / scales[:, None]).round()
    learned = round_with_feedback(weight, covariance, scales)
    assert bool((learned == learned.round()).all())
    assert float(learned.abs().max()) <= 127

    def error(values: torch.Tensor) -> float:
        return float(((values * scales[:, None] - weight) @ x).square().mean())

    assert error(learned) < 0.25 * error(nearest)


def test_feedback_on_independent_inputs_is_rounding_to_the_nearest() -> None:
    weight = torch.randn(8, 300, generator=torch.Generator().manual_seed(1))
    scales = torch.from_numpy(weight_scales(weight.numpy()))
    assert torch.equal(
        round_with_feedback(weight, torch.eye(300), scales), (weight / scales[:, None]).round()
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_each_layer_errs_less_on_images_that_it_was_not_rounded_for(seed: int) -> None:
    """Layers are compared one by one, on the same inputs.

    The logits would not do: they also hold the errors of the activations, which are larger and change with every tie
    that another order of summation rounds the other way.
    """
    spec = find(depth=None, name="resnet8-cifar")
    graph = fold(export(random_model(spec, 10, seed=seed)[0], image_size=32))
    pixels = _correlated_pixels(seed, 48)
    scales, means = _fine_scales(graph), _means(graph, pixels[:32])
    steps: list[tuple[int, int]] = []
    learned = learn_rounding(
        graph, quantize(graph, scales), list(pixels[:32]), means, progress=lambda *step: steps.append(step)
    )
    by_learning = Network(quantize(graph, scales, learned=learned))
    to_nearest = Network(quantize(graph, scales))
    bias_corrected = Network(quantize(graph, scales, means=means))
    found = _layer_errors(Network(graph), by_learning, [by_learning, to_nearest, bias_corrected], pixels[32:])
    over_nearest, over_corrected = (
        np.exp(np.mean([np.log(errors[0] / errors[other]) for errors in found.values()])) for other in (1, 2)
    )
    assert over_nearest < 0.4
    assert over_corrected < 0.6
    assert steps == [(count, 8) for count in range(1, 9)]
    assert all(entry.values.dtype == np.int8 and (entry.scales > 0).all() for entry in learned.values())


def _correlated_pixels(seed: int, count: int) -> np.ndarray:
    """Blocks of 4 by 4 pixels with some noise: like photographs, neighbours have similar values."""
    rng = np.random.default_rng(seed)
    blocks = rng.normal(size=(count, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    return (blocks + 0.3 * rng.normal(size=blocks.shape)).astype(np.float32)


def _layer_errors(
    exact: Network, running: Network, compared: list[Network], pixels: np.ndarray
) -> dict[str, list[float]]:
    """Squared error of each layer of the ``compared`` networks, on the inputs that ``running`` gives the layer."""
    errors: dict[str, list[float]] = {}
    layers = {node.name: node for node in exact.nodes}
    with torch.no_grad():
        values = {running.input: torch.from_numpy(pixels)}
        for index, node in enumerate(running.nodes):
            if node.op in ("Conv", "Gemm"):
                layer, x = layers[node.name], values[node.inputs[0]]
                expected = exact.step(layer, {layer.inputs[0]: x})
                outputs = [network.step(network.nodes[index], {node.inputs[0]: x}) for network in compared]
                errors[node.name] = [float((output - expected).square().sum()) for output in outputs]
            values[node.output] = running.step(node, values)
    return errors


def test_moments_of_the_first_layer_are_those_of_its_patches() -> None:
    graph = folded("resnet20-cifar", "A")
    pixels = np.random.default_rng(9).normal(0.5, 1.0, size=(4, 3, 32, 32)).astype(np.float32)
    found = first_moments(graph, list(pixels))
    patches = torch.nn.functional.unfold(torch.from_numpy(pixels), 3, padding=1).transpose(0, 1).flatten(1)
    # of 4,096 positions every one is taken
    assert np.allclose(found[-1], patches.mean(1), atol=1e-5)
    assert np.allclose(found[:-1], torch.cov(patches, correction=0), atol=1e-4)


@pytest.mark.parametrize("levels", [63, 127])
def test_the_first_layer_rounded_against_its_pixels_errs_less(levels: int) -> None:
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(16, 3, 3, 3, generator=generator)
    x = 0.3 + torch.randn(27, 12, generator=generator) @ torch.randn(12, 4000, generator=generator)
    mean, centred = x.mean(1), x - x.mean(1, keepdim=True)
    moments = np.vstack([(centred @ centred.t() / 4000).numpy(), mean.numpy()[None]])
    found = learn_first(weight.numpy(), np.zeros(16, np.float32), moments, step=0.01, levels=levels)
    rows, scales = weight.flatten(1), torch.from_numpy(found.scales)[:, None]
    assert np.abs(found.values.astype(int)).max() == levels

    def error(values: torch.Tensor, bias: torch.Tensor) -> float:
        return float((values * scales @ x + bias[:, None] - rows @ x).square().mean())

    learned = error(torch.from_numpy(found.values).flatten(1).float(), torch.from_numpy(found.bias))
    assert learned < 0.4 * error((rows / scales).round(), torch.zeros(16))


def test_narrow_layers_stay_within_seven_bits_and_others_do_not() -> None:
    graph = folded("resnet20-cifar", "A")
    pixels = np.random.default_rng(8).normal(size=(4, 3, 32, 32)).astype(np.float32)
    scales, means = _fine_scales(graph), _means(graph, pixels)
    learned = learn_rounding(
        graph, quantize(graph, scales), list(pixels), means, levels={"conv1": NARROW_LEVELS}
    )
    largest = {name: int(np.abs(entry.values.astype(int)).max()) for name, entry in learned.items()}
    assert largest.pop("conv1") == 63
    assert set(largest.values()) == {127}


def test_bias_correction_takes_the_mean_of_the_error_away() -> None:
    graph = folded("resnet20-cifar", "A")
    pixels = np.random.default_rng(6).normal(1.0, 1.0, size=(16, 3, 32, 32)).astype(np.float32)
    scales, means = _fine_scales(graph), _means(graph, pixels)
    expected = run(graph, pixels, outputs=["conv1"])["conv1"]
    plain = run(quantize(graph, scales), pixels, outputs=["conv1"])["conv1"]
    corrected = run(quantize(graph, scales, means=means), pixels, outputs=["conv1"])["conv1"]
    # borders are padded, so that the mean over all positions is not quite the input's
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    before = np.abs((plain - expected)[inner].mean(axis=(0, 2, 3)))
    after = np.abs((corrected - expected)[inner].mean(axis=(0, 2, 3)))
    assert after.max() < 0.3 * before.max()


def _fine_scales(graph: onnx.ModelProto) -> dict[str, float]:
    """Scales that clip nothing of these images."""
    from rescompile.graph.shared.topology import quantized_tensors

    pixels = np.random.default_rng(7).normal(size=(8, 3, 32, 32)).astype(np.float32) * 1.5
    names = [name for name in quantized_tensors(graph) if name != "input"]
    seen = run(graph, pixels, outputs=names)
    return {"input": 0.06, **{name: float(np.abs(seen[name]).max() / 127) for name in names}}


def _means(graph: onnx.ModelProto, pixels: np.ndarray) -> dict[str, np.ndarray]:
    names = sorted({node.input[0] for node in graph.graph.node if node.op_type in ("Conv", "Gemm")})
    seen = {**run(graph, pixels, outputs=[name for name in names if name != "input"]), "input": pixels}
    return {name: seen[name].mean(axis=(0, *range(2, seen[name].ndim))).astype(np.float64) for name in names}


def test_weights_of_the_graph_are_those_that_were_learned() -> None:
    graph = folded("resnet20-cifar", "A")
    pixels = np.random.default_rng(8).normal(size=(8, 3, 32, 32)).astype(np.float32)
    scales = _fine_scales(graph)
    learned = learn_rounding(graph, quantize(graph, scales), list(pixels), _means(graph, pixels))
    constants = {
        entry.name: numpy_helper.to_array(entry)
        for entry in quantize(graph, scales, learned=learned).graph.initializer
    }
    assert np.array_equal(constants["layer2.0.conv1.weight.int8"], learned["layer2.0.conv1"].values)
    assert np.array_equal(constants["layer2.0.conv1.weight.scale"], learned["layer2.0.conv1"].scales)
    assert np.array_equal(constants["layer2.0.conv1.bias"], learned["layer2.0.conv1"].bias)


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-20])
def test_inputs_that_never_change_are_no_obstacle(scale: float) -> None:
    """Images of one colour: every later layer sees the same numbers, or denormal differences."""
    graph = folded("resnet20-cifar", "A")
    pictures = images("resnet20-cifar") * np.float32(scale)
    learned = learn_rounding(graph, int8("resnet20-cifar", "A"), list(pictures), _means(graph, pictures))
    assert all(np.isfinite(one.bias).all() and np.isfinite(one.scales).all() for one in learned.values())
