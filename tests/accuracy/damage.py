"""Checkpoints that quantize badly on purpose, and a small network that classifies without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.preprocess import CIFAR, normalize
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find

FACTOR = 100.0
NETWORK = "resnet14-cifar"
CLASSES = 10


def with_outlier(
    state: dict[str, Tensor], block: str, channel: int, factor: float = FACTOR
) -> dict[str, Tensor]:
    """A state dict whose ``block`` has ``factor`` times as large values in one channel behind its first ReLU.

    The convolution behind it divides them again, so nothing changes but the range of that tensor.
    """
    damaged = {name: tensor.clone() for name, tensor in state.items()}
    for part in ("weight", "bias"):
        damaged[f"{block}.bn1.{part}"][channel] *= factor
    damaged[f"{block}.conv2.weight"][:, channel] /= factor
    return damaged


def pictures(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, 32, 32, 3] of ten patterns under noise, and which pattern each one is."""
    patterns = (
        np.random.default_rng(9).integers(40, 216, (CLASSES, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    )
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count)
    noisy = patterns[labels] + rng.normal(0, 40, (count, 32, 32, 3))
    return noisy.clip(0, 255).astype(np.uint8), labels


def classifier() -> dict[str, Tensor]:
    """``NETWORK`` with random convolutions and a classifier fitted to what they make of ``pictures``."""
    model, _ = random_model(find(depth=None, name=NETWORK), CLASSES, seed=0)
    images, labels = pictures(400, seed=1)
    seen: list[Tensor] = []
    model.fc.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.from_numpy(normalize(images, CIFAR)))
        x = torch.cat([seen[0], torch.ones(len(images), 1)], dim=1).double()
        wanted = torch.nn.functional.one_hot(torch.from_numpy(labels), CLASSES).double()
        solved = torch.linalg.solve(x.t() @ x + 10.0 * torch.eye(x.shape[1], dtype=x.dtype), x.t() @ wanted)
    state = model.state_dict()
    state["fc.weight"], state["fc.bias"] = solved[:-1].t().float().contiguous(), solved[-1].float()
    return state


def write_sets(folder: Path) -> None:
    """``calibration.npz`` without labels, ``validation.npz``, and ``mislabelled.npz`` of other images, half right."""
    np.savez(folder / "calibration.npz", images=pictures(32, seed=2)[0])
    images, labels = pictures(100, seed=3)
    np.savez(folder / "validation.npz", images=images, labels=labels)
    images, labels = pictures(100, seed=4)
    np.savez(
        folder / "mislabelled.npz",
        images=images,
        labels=np.where(np.arange(100) % 2, labels, np.random.default_rng(5).integers(0, CLASSES, 100)),
    )
