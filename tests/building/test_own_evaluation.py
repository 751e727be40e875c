"""A verdict agrees with the user's own evaluation in PyTorch, or it is not "verified".

Networks, normalizations, sizes, wrappers of checkpoints, class orders and forms of image sets are drawn at random. The
user's evaluation is written here with torch, Pillow and NumPy alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import rescompile
from calibration.errors import CalibrationError
from rescompile.config import BuildConfig, ModelConfig
from rescompile.errors import RescompileError
from rescompile.models.random_weights import random_model
from rescompile.models.registry import find
from rescompile.report import BuildReport
from rescompile.sources.preprocess_options import PreprocessOptions

IMAGES = 48
NAMES = ("yak", "swan", "pug", "owl", "newt", "mole", "lark", "ibex", "hare", "gnu")
"""Not in the order of the alphabet."""


@dataclass
class Case:
    """A network as its user has it, and labelled images."""

    rng: np.random.Generator
    options: dict[str, Any]
    model: torch.nn.Module
    images: list[NDArray[np.uint8]]
    labels: NDArray[np.int64]
    own_top1: float

    @property
    def classes(self) -> int:
        return int(self.model.fc.out_features)  # type: ignore[arg-type]


def draw(seed: int) -> Case:
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(4, 11))
    model, _ = random_model(find(depth=None, name="resnet8-cifar"), classes, seed=seed)
    crop = (int(rng.integers(16, 25)), int(rng.integers(16, 25)))
    options: dict[str, Any] = {
        "crop": crop if rng.random() < 0.5 else crop[0],
        "mean": tuple(float(value) for value in rng.uniform(0.2, 0.7, 3)),
        "std": tuple(float(value) for value in rng.uniform(0.1, 0.5, 3)),
        "color": str(rng.choice(["RGB", "BGR"])),
        "interpolation": str(rng.choice(["nearest", "bilinear", "bicubic"])),
        "resize": [(26, 30), 27, 0][int(rng.integers(3))],
    }
    images = [
        np.kron(rng.integers(0, 256, (8, 10, 3)), np.ones((4, 4, 1))).astype(np.uint8) for _ in range(IMAGES)
    ]
    logits = own_logits(model, images, options)
    # without this a random network gives one class for all images
    model.fc.bias.data -= torch.from_numpy(logits.mean(axis=0))
    own = own_logits(model, images, options).argmax(axis=1)
    labels = np.where(rng.random(IMAGES) < 0.85, own, rng.integers(0, classes, IMAGES))
    labels[:classes] = np.where(np.isin(np.arange(classes), labels), labels[:classes], np.arange(classes))
    return Case(rng, options, model, images, labels, float((own == labels).mean()))


def own_logits(
    model: torch.nn.Module, images: list[NDArray[np.uint8]], options: dict[str, Any]
) -> NDArray[np.float32]:
    """The user's own evaluation."""
    height, width = (
        options["crop"] if isinstance(options["crop"], tuple) else (options["crop"], options["crop"])
    )
    planes = []
    for pixels in images:
        image = Image.fromarray(pixels)
        filter_ = Image.Resampling[options["interpolation"].upper()]
        if isinstance(options["resize"], tuple):
            image = image.resize(options["resize"][::-1], filter_)
        elif options["resize"]:
            side = options["resize"]
            image = image.resize((int(side * image.width / image.height), side), filter_)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        x = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
        if options["color"] == "BGR":
            x = x[..., ::-1]
        x = (x - np.array(options["mean"], np.float32)) / np.array(options["std"], np.float32)
        planes.append(x.transpose(2, 0, 1))
    with torch.inference_mode():
        return model(torch.from_numpy(np.stack(planes).astype(np.float32))).numpy()  # type: ignore[no-any-return]


WRAPPERS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (
    lambda state: state,
    lambda state: {"state_dict": state, "epoch": 3},
    lambda state: {"model": {f"module.{name}": tensor for name, tensor in state.items()}},
)


def numbered(case: Case, root: Path, labels: NDArray[np.int64]) -> Path:
    """Folders named by class number."""
    return _folders(case, root, [str(label) for label in labels], map(str, range(case.classes)))


def named(case: Case, root: Path, labels: NDArray[np.int64]) -> Path:
    """Folders named by class, whose order is not that of the classes."""
    return _folders(case, root, [NAMES[label] for label in labels], NAMES[: case.classes])


def table(case: Case, root: Path, labels: NDArray[np.int64]) -> Path:
    (root / "images").mkdir(parents=True)
    for index, pixels in enumerate(case.images):
        Image.fromarray(pixels).save(root / f"images/{index:02}.png")
    rows = "".join(f"{index:02}.png; {label}\n" for index, label in enumerate(labels))
    (root / "labels.csv").write_text("\ufefffile; class_index\n" + rows, "utf-8")
    return root


def archive(case: Case, root: Path, labels: NDArray[np.int64]) -> Path:
    root.mkdir()
    np.savez(root / "set.npz", images=np.stack(case.images), labels=labels)
    return root / "set.npz"


FORMS = (numbered, named, table, archive)


def _folders(case: Case, root: Path, folders: list[str], every: Any) -> Path:
    for name in every:
        (root / name).mkdir(parents=True)
    for index, (pixels, folder) in enumerate(zip(case.images, folders, strict=True)):
        Image.fromarray(pixels).save(root / folder / f"{index:02}.png")
    return root


def build(case: Case, folder: Path, labels: NDArray[np.int64], names: tuple[str, ...]) -> BuildReport:
    form = FORMS[int(case.rng.integers(len(FORMS)))] if names == NAMES else named
    (folder / "classes.txt").write_text("\n".join(names[: case.classes]))
    wrap = WRAPPERS[int(case.rng.integers(len(WRAPPERS)))]
    torch.save(wrap(case.model.state_dict()), folder / "net.pth")
    return rescompile.build(
        BuildConfig(
            model=ModelConfig(
                weights=str(folder / "net.pth"),
                classes=folder / "classes.txt",
                preprocess=PreprocessOptions(**case.options),
            ),
            precision="fp32",
            backend="openvino",
            validation_set=form(case, folder / "val", labels),
            output=folder / "engine",
        )
    )


SEEDS = range(6)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_verified_is_the_users_own_accuracy(seed: int, tmp_path: Path) -> None:
    case = draw(seed)
    report = build(case, tmp_path, case.labels, NAMES)
    assert report.verdict == "verified", report.notes
    assert report.top1_reference == pytest.approx(case.own_top1)
    assert report.top1_engine == pytest.approx(case.own_top1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mistake", ["labels from 1", "classes in another order"])
def test_wrong_labels_and_orders_are_never_verified(seed: int, mistake: str, tmp_path: Path) -> None:
    case = draw(seed)
    labels, names = case.labels, NAMES
    if mistake == "labels from 1":
        labels = labels + 1
        labels[labels == case.classes] = 1  # as a user who lost the last class
    else:
        # every class under the name of the next one
        names = (*NAMES[1 : case.classes], NAMES[0])
    try:
        report = build(case, tmp_path, labels, names)
    except (RescompileError, CalibrationError):
        return  # refused, so that no wrong verdict is given
    assert report.verdict != "verified", report.notes
