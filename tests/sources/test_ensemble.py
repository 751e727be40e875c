from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from calibration.preprocess import CIFAR, IMAGENET
from rescompile.building.source import source_of
from rescompile.config import ModelConfig
from rescompile.errors import UsageError
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.sources import modules
from rescompile.sources.ensemble import ensemble_of
from rescompile.sources.modules import network_of
from rescompile.sources.network import SourceNetwork
from tests.sources.zoo import run


@pytest.fixture(autouse=True)
def quick_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "installed", lambda package: package != "onnxscript")


def network(seed: int, classes: int = 10) -> SourceNetwork:
    model, _ = random_model(find(depth=None, name="resnet20-cifar"), classes, seed)
    return network_of(model, preprocess=CIFAR)


def images() -> NDArray[Any]:
    return np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


def test_answer_is_the_mean_of_the_networks() -> None:
    parts = [network(seed) for seed in range(3)]
    joined = ensemble_of(parts)
    expected = np.mean([run(part, images()) for part in parts], axis=0)
    np.testing.assert_allclose(run(joined, images()), expected, rtol=1e-4, atol=1e-5)
    assert joined.reference is not None
    np.testing.assert_allclose(joined.reference(images()), expected, rtol=1e-4, atol=1e-5)
    assert joined.checkpoint.sha256 != ensemble_of(parts[:2]).checkpoint.sha256
    assert joined.preprocess == CIFAR


def test_graphs_of_two_opsets_are_joined() -> None:
    module = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    old = network_of(module, preprocess=CIFAR)
    buffer_opset = old.graph.opset_import[0].version
    newer = network(0)
    newer.graph.opset_import[0].version = buffer_opset + 1
    joined = ensemble_of([old, newer])
    expected = (run(old, images()) + run(newer, images())) / 2
    np.testing.assert_allclose(run(joined, images()), expected, rtol=1e-4, atol=1e-5)


def test_an_ensemble_becomes_a_source() -> None:
    source = source_of(ensemble_of([network(0), network(1)]), ModelConfig(model="resnet20-cifar"))
    assert source.class_count == 10
    assert source.residual_adds == 18


def test_networks_that_differ_are_refused() -> None:
    with pytest.raises(UsageError, match="two networks or more"):
        ensemble_of([network(0)])
    with pytest.raises(UsageError, match=r"network 2 of the ensemble, resnet, gives \[\[7\]\]"):
        ensemble_of([network(0), network(1, classes=7)])
    with pytest.raises(UsageError, match="another preprocessing"):
        ensemble_of([network(0), replace(network(1), preprocess=IMAGENET)])
    torch.manual_seed(0)
    names = [replace(network(0), class_names=tuple(f"{word}{n}" for n in range(10))) for word in "ab"]
    with pytest.raises(UsageError, match="other class names"):
        ensemble_of(names)
