"""Checkpoints of detectors and segmenters name the way to their backbone; classifiers under such names are read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rescompile.errors import CheckpointError
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.sources.checkpoint import read_weights


def saved(path: Path, heads: dict[str, tuple[int, ...]]) -> Path:
    model, _ = random_model(find(depth=None, name="resnet8-cifar"), 10, 0)
    state = {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save(state | {name: torch.zeros(shape) for name, shape in heads.items()}, path)
    return path


@pytest.mark.parametrize(
    "heads",
    [
        {"rpn.head.conv.0.0.weight": (8, 8, 3, 3)},
        {"aux_classifier.0.weight": (8, 32, 3, 3)},
        {"classifier.0.weight": (8, 64, 3, 3), "classifier.4.weight": (5, 8, 1, 1)},
    ],
)
def test_detectors_and_segmenters_are_refused_with_the_way(
    tmp_path: Path, heads: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(
        CheckpointError, match=r"detector or segmenter.*--outputs c2,c3,c4,c5 beside --weights"
    ):
        read_weights(saved(tmp_path / "net.pth", heads))


def test_a_classifier_with_a_backbone_is_read(tmp_path: Path) -> None:
    assert "fc.weight" in read_weights(saved(tmp_path / "net.pth", {})).state_dict
