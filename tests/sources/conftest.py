"""Small checkpoints with random weights, made once and never changed by a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rescompile.models.random_weights import random_model
from rescompile.models.registry import find, with_options

State = dict[str, Tensor]


def _state(name: str, classes: int = 10, shortcut: str | None = None) -> State:
    spec = with_options(find(depth=None, name=name), shortcut=shortcut)
    return dict(random_model(spec, classes, seed=1)[0].state_dict())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small layers spend their time waiting for a second thread where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def _cifar_tensors() -> State:
    return _state("resnet20-cifar")


@pytest.fixture(scope="session")
def _cifar_b_tensors() -> State:
    return _state("resnet20-cifar", shortcut="B")


@pytest.fixture(scope="session")
def _resnet18_tensors() -> State:
    return _state("resnet18", classes=7)


@pytest.fixture
def cifar_state(_cifar_tensors: State) -> State:
    """state_dict of a resnet20-cifar, option A, ten classes; the dict may be changed, its tensors may not."""
    return dict(_cifar_tensors)


@pytest.fixture
def cifar_b_state(_cifar_b_tensors: State) -> State:
    """A state_dict of a CIFAR network with option B."""
    return dict(_cifar_b_tensors)


@pytest.fixture
def resnet18_state(_resnet18_tensors: State) -> State:
    """state_dict of a resnet18 with seven classes."""
    return dict(_resnet18_tensors)


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write an object with torch.save and give its path."""

    def write(payload: object, name: str = "weights.pth", **options: object) -> Path:
        torch.save(payload, tmp_path / name, **options)
        return tmp_path / name

    return write
