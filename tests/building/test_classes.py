"""Builds judge a network by the user's classes, whatever the order of folders and files."""

from __future__ import annotations

import codecs
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rescompile
from calibration.errors import ImageSetError
from calibration.preprocess import CIFAR, normalize
from rescompile.accuracy.verify import verify
from rescompile.config import BuildConfig, ModelConfig
from rescompile.manifest import read_manifest
from rescompile.models.registry import find
from rescompile.progress import Silent
from rescompile.report import BuildReport, Limits
from rescompile.sources.checkpoint import build_model, load_checkpoint

NAMES = ("zebra", "yak", "wolf", "vole", "toad", "swan", "rat", "pug", "owl", "newt")


@pytest.fixture(scope="module")
def answers(small: Path) -> list[tuple[np.ndarray, int]]:
    """Images of ``small``, and the class that its network gives each."""
    images = np.load(small / "images.npz")["images"]
    model = build_model(find(depth=None, name="resnet20-cifar"), load_checkpoint(small / "net.pth"))
    with torch.inference_mode():
        found = model(torch.from_numpy(normalize(images, CIFAR))).argmax(1).tolist()
    return list(zip(images, found, strict=True))


def write(root: Path, answers: list[tuple[np.ndarray, int]], names: tuple[str, ...]) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    for index, (image, label) in enumerate(answers):
        Image.fromarray(image).save(root / names[label] / f"{index:02d}.png")
    return root


def build(small: Path, images: Path, output: Path, classes: Path | None = None) -> BuildReport:
    return rescompile.build(
        BuildConfig(
            model=ModelConfig(weights=str(small / "net.pth"), classes=classes), precision="fp32",
            backend="openvino", validation_set=images, limits=Limits(max_top1_drop=1.0), output=output,
        )
    )  # fmt: skip


def test_numbered_folders_are_the_networks_classes(
    small: Path, answers: list[tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    used = [label for _, label in answers]
    root = write(tmp_path / "val", answers, tuple(f"{index:03}" for index in range(max(used) + 1)))
    assert build(small, root, tmp_path / "engine").top1_reference == 1.0


def test_classes_in_another_order_are_matched_by_name(
    small: Path, answers: list[tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_bytes("\r\n".join(NAMES).encode("utf-16"))
    root = write(tmp_path / "val", answers, NAMES)
    report = build(small, root, tmp_path / "engine", tmp_path / "classes.txt")
    assert report.top1_reference == 1.0
    assert read_manifest(tmp_path / "engine").classes == NAMES
    again = verify(
        tmp_path / "engine", validation_set=root, validation_images=None, limits=None, reference=None,
        skip_unreadable=False, progress=Silent(),
    )  # fmt: skip
    assert again.top1_reference == 1.0


def test_a_folder_that_is_no_class_is_refused(
    small: Path, answers: list[tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_bytes(codecs.BOM_UTF8 + "\n".join(NAMES).encode())
    root = write(tmp_path / "val", answers, (*NAMES[:-1], "gnu"))
    with pytest.raises(ImageSetError, match=r"not classes of the network \('gnu'\), while others are"):
        build(small, root, tmp_path / "engine", tmp_path / "classes.txt")


def test_labels_from_one_are_named(
    small: Path, answers: list[tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    images = np.stack([image for image, _ in answers][:10])
    np.savez(tmp_path / "val.npz", images=images, labels=np.arange(1, 11))
    with pytest.raises(ImageSetError, match=r"run from 1 to 10 and never are 0, .* subtract 1 from each"):
        build(small, tmp_path / "val.npz", tmp_path / "engine")
    np.savez(tmp_path / "less.npz", images=images[:9], labels=np.arange(1, 10))
    report = build(small, tmp_path / "less.npz", tmp_path / "engine")
    assert any("run from 1 to 9" in note for note in report.notes)


def test_folders_without_names_of_classes_are_matched_by_order_and_said(
    small: Path, answers: list[tuple[np.ndarray, int]], tmp_path: Path
) -> None:
    folders = tuple(f"n{index:08}" for index in range(10))
    root = write(tmp_path / "val", answers, folders)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    report = build(small, root, tmp_path / "engine", tmp_path / "classes.txt")
    assert report.top1_reference == 1.0
    assert any("'n00000000' is 'zebra', 'n00000001' is 'yak'" in note for note in report.notes)
