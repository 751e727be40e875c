"""No build ends "verified" while the user's own evaluation of the network disagrees with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rescompile
from calibration.preprocess import CIFAR, normalize
from rescompile.accuracy.verify import verify
from rescompile.config import BuildConfig, CalibrationConfig, ModelConfig
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.progress import Silent
from rescompile.report import NOT_JUDGED, BuildReport, Limits

COUNT, CLASSES = 120, 10


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``net.pth`` whose classes are all answered, and ``images.npz`` with the answers of torch as labels."""
    folder = tmp_path_factory.mktemp("network")
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (COUNT, 8, 8, 3), dtype=np.uint8)
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)
    model, _ = random_model(find(depth=None, name="resnet8-cifar"), CLASSES, seed=0)
    pixels = torch.from_numpy(normalize(images, CIFAR))
    with torch.inference_mode():
        logits = model(pixels)
        # a random classifier names few classes; these offsets let it name all of them
        model.fc.weight.mul_(1 / logits.std(0)[:, None])
        model.fc.bias.zero_()
        model.fc.bias.sub_(model(pixels).mean(0))
        labels = model(pixels).argmax(1).numpy()
    torch.save(model.state_dict(), folder / "net.pth")
    np.savez(folder / "images.npz", images=images, labels=labels)
    assert len(np.unique(labels)) == CLASSES
    return folder


def built(network: Path, output: Path, labels: np.ndarray, **model: Any) -> BuildReport:
    images = np.load(network / "images.npz")["images"]
    np.savez(output.parent / "told.npz", images=images, labels=labels)
    return rescompile.build(
        BuildConfig(
            model=ModelConfig(weights=str(network / "net.pth"), **model),
            precision="fp32",
            calibration=CalibrationConfig(),
            validation_set=output.parent / "told.npz",
            backend="onnxruntime",
            output=output,
        )
    )


@pytest.fixture(scope="module")
def right(network: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildReport]:
    """An engine whose labels are the network's answers, and its report."""
    folder = tmp_path_factory.mktemp("right") / "e"
    return folder, built(network, folder, np.load(network / "images.npz")["labels"])


def test_a_build_whose_labels_fit_is_verified(right: tuple[Path, BuildReport]) -> None:
    assert (right[1].verdict, right[1].advice) == ("verified", ())


@pytest.mark.parametrize("kind", ["permuted", "from 1", "exchanged", "noise"])
def test_a_build_is_verified_only_where_its_labels_fit(network: Path, tmp_path: Path, kind: str) -> None:
    right = np.load(network / "images.npz")["labels"]
    random = np.random.default_rng(7)
    order = np.arange(CLASSES)
    if kind == "exchanged":
        most = np.bincount(right).argsort()[-2:]
        order[most] = most[::-1]
    labels = {
        "permuted": np.roll(order, 3)[right],
        "from 1": (right + 1) % CLASSES,
        "exchanged": order[right],
        "noise": random.permutation(right),
    }[kind]
    report = built(network, tmp_path / "e", labels)
    assert report.top1_agreement == 1.0, "agreement alone would call each of them verified"
    assert (report.verdict, report.passed) == (NOT_JUDGED, False)
    assert report.misfit is not None
    assert "check the preprocessing" in report.misfit
    stored = json.loads((tmp_path / "e.failed/report.json").read_text())
    assert (stored["passed"], stored["misfit"]) == (False, report.misfit)


def test_verify_looks_at_the_answers_too(
    network: Path, right: tuple[Path, BuildReport], tmp_path: Path
) -> None:
    with np.load(network / "images.npz") as stored:
        np.savez(tmp_path / "moved.npz", images=stored["images"], labels=(stored["labels"] + 1) % CLASSES)
    again = verify(
        right[0], validation_set=tmp_path / "moved.npz", validation_images=None, limits=None, reference=None,
        skip_unreadable=False, progress=Silent(),
    )  # fmt: skip
    assert again.verdict == NOT_JUDGED
    assert again.advice == ()


def test_a_failed_verify_says_what_to_do_next(network: Path, right: tuple[Path, BuildReport]) -> None:
    again = verify(
        right[0], validation_set=network / "images.npz", validation_images=None,
        limits=Limits(max_relative_rms=0.0, min_top1=1.0), reference=None, skip_unreadable=False, progress=Silent(),
    )  # fmt: skip
    assert again.verdict == "failed"
    assert f"rescompile compare {right[0]} --images {network / 'images.npz'}" in again.advice[-1]
