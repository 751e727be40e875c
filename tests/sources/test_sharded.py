"""Checkpoints in several files with an index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rescompile.errors import CheckpointError
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.sources.checkpoint import read_weights

NAMES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A ResNet-20 in two files."""
    state = random_model(find(depth=None, name="resnet20-cifar"), 10, 0)[0].state_dict()
    places = {name: NAMES[position >= 20] for position, name in enumerate(state)}
    for part in NAMES:
        save_file({name: state[name].contiguous() for name in state if places[name] == part}, tmp_path / part)
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def test_parts_are_one_network_whose_hash_follows_each(index: Path) -> None:
    weights = read_weights(index)
    expected = random_model(find(depth=None, name="resnet20-cifar"), 10, 0)[0].state_dict()
    assert set(weights.state_dict) == {name for name in expected if not name.endswith("num_batches_tracked")}
    torch.testing.assert_close(weights.state_dict["fc.weight"], expected["fc.weight"])
    before = weights.sha256
    save_file({"conv1.weight": torch.zeros(1)}, index.with_name(NAMES[0]))
    assert weights.sha256 != before


def test_one_part_alone_names_its_index(index: Path) -> None:
    with pytest.raises(CheckpointError, match=r"one of several files .*model\.safetensors\.index\.json"):
        read_weights(index.with_name(NAMES[1]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"weight_map": {"conv1.weight": NAMES[1]}}, r"00002\.safetensors lacks conv1\.weight, which model"),
        ({"weight_map": {"conv1.weight": "../secret.safetensors"}}, "names no files that may lie beside it"),
        ({"weight_map": {"conv1.weight": 3}}, "names no files"),
        ({"weight_map": {}}, "names no files"),
        (
            {"weight_map": {"conv1.weight": "model-00003-of-00003.safetensors"}},
            "00003.safetensors does not exist",
        ),
        ({}, "is not an index of a checkpoint"),
        ([], "is not an index of a checkpoint"),
    ],
)
def test_indexes_that_do_not_fit_are_refused(index: Path, content: Any, said: str) -> None:
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=said):
        read_weights(index)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_weights(index.with_name("other.safetensors.index.json"))
