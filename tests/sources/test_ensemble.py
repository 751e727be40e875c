from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from calibration.preprocess import CIFAR, IMAGENET
from rescompile.building.source_from_graph import source_of
from rescompile.config import ModelConfig
from rescompile.errors import UsageError
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.sources import module_export
from rescompile.sources.ensemble import ensemble_of
from rescompile.sources.modules import network_of
from rescompile.sources.network import SourceNetwork
from tests.sources.zoo import run


@pytest.fixture(autouse=True)
def quick_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_export, "installed", lambda package: package != "onnxscript")


def network(seed: int, classes: int = 10) -> SourceNetwork:
    model, _ = random_model(find(depth=None, name="resnet20-cifar"), classes, seed)
    return network_of(model, preprocess=CIFAR)


def images() -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    found: NDArray[Any] = shares / shares.sum(1, keepdims=True)
    return found


def test_answer_is_the_mean_of_the_networks() -> None:
    parts = [network(seed) for seed in range(3)]
    logits = [run(part, images()) for part in parts]
    joined = ensemble_of(parts, "logits")
    np.testing.assert_allclose(run(joined, images()), np.mean(logits, axis=0), rtol=1e-4, atol=1e-5)
    of_shares = run(ensemble_of(parts), images())
    np.testing.assert_allclose(
        of_shares, np.log(np.mean([*map(softmax, logits)], axis=0)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(np.exp(of_shares).sum(1), 1, rtol=1e-5)
    assert joined.checkpoint.sha256 != ensemble_of(parts[:2]).checkpoint.sha256
    assert joined.preprocess == CIFAR
    assert joined.name == "ensemble-resnet-resnet-resnet"
    assert ensemble_of([network(seed) for seed in range(8)]).name == "ensemble-8-resnet"


def test_the_mean_of_extreme_probabilities_is_finite() -> None:
    convolution = nn.Conv2d(3, 10, 3)
    module = nn.Sequential(convolution, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    loud = []
    for _ in range(2):
        with torch.no_grad():
            convolution.weight.mul_(1e4)
        loud.append(network_of(module, preprocess=CIFAR))
    found = run(ensemble_of(loud), images())
    assert np.isfinite(found).all()
    assert found.min() < -200


def test_graphs_of_two_opsets_are_joined() -> None:
    module = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    old = network_of(module, preprocess=CIFAR)
    buffer_opset = old.graph.opset_import[0].version
    newer = network(0)
    newer.graph.opset_import[0].version = buffer_opset + 1
    joined = ensemble_of([old, newer], "logits")
    expected = (run(old, images()) + run(newer, images())) / 2
    np.testing.assert_allclose(run(joined, images()), expected, rtol=1e-4, atol=1e-5)


def test_an_ensemble_becomes_a_source() -> None:
    source = source_of(ensemble_of([network(0), network(1)]), ModelConfig(model="resnet20-cifar"))
    assert source.class_count == 10
    assert source.residual_adds == 18


def test_networks_that_differ_are_refused() -> None:
    with pytest.raises(UsageError, match="two networks or more"):
        ensemble_of([network(0)])
    first = network(0)
    words = r"network 2 of the ensemble, module ResNet \(resnet\), "
    with pytest.raises(UsageError, match=words + r"gives \[7\], not \[10\] as module ResNet"):
        ensemble_of([first, network(1, classes=7)])
    smaller = network_of(random_model(find(depth=None, name="resnet20-cifar"), 10, 1)[0], size=(16, 16))
    with pytest.raises(UsageError, match=words + r"takes images of \[3, 16, 16\], not \[3, 32, 32\] as"):
        ensemble_of([first, smaller])
    with pytest.raises(UsageError, match=words + r"has another preprocessing \(.*\) than module"):
        ensemble_of([first, replace(network(1), preprocess=IMAGENET)])
    names = [replace(network(n), class_names=tuple(f"{n}{m}" for m in range(10))) for n in range(2)]
    with pytest.raises(UsageError, match="other class names than"):
        ensemble_of(names)
    with pytest.raises(UsageError, match="is listed twice"):
        ensemble_of([first, network(1), network(0)])
    one = [network(seed, classes=1) for seed in range(2)]
    with pytest.raises(UsageError, match=r"not one row of classes; .*--ensemble-mean logits"):
        ensemble_of(one)
    assert ensemble_of(one, "logits").name == "ensemble-resnet-resnet"
