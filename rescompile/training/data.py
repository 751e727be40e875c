"""Images to train on: CIFAR's published files, .npz archives, folders, or the small digits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import ImageSetError
from calibration.images import ImageSet, open_image_set
from calibration.images.arrays import InMemoryImages
from rescompile.errors import DataError, reason_of
from rescompile.optional import require
from rescompile.training.cifar_binary import Rows, read_cifar
from rescompile.wording import counted

DIGITS = "digits"
HELD_OUT = 10
"""Without a test set, one image of so many is kept for tests."""
_TESTS = ("val", "validation", "test")
_PAIRS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
_SMALLEST_DIGIT_STEP = 255 / 16


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainingData:
    """Training and test images with labels."""

    name: str
    train: ImageSet
    test: ImageSet
    classes: int
    class_names: tuple[str, ...] | None
    fingerprint: str
    mirrored: bool = True
    """Whether an image's mirror image is of the same class."""
    notes: tuple[str, ...] = ()


def open_data(source: str, test: Path | None = None) -> TrainingData:
    """The images that ``--data`` names, and those of ``test`` to test with.

    Raises:
        DataError: they are missing, damaged, have no labels, or their classes do not agree.
    """
    try:
        found = _digits() if source == DIGITS else _from_path(Path(source))
        if test is not None:
            found = replace(found, test=_labelled(test, found.class_names))
    except ImageSetError as error:
        raise DataError(str(error)) from None
    if test is None and found.test is found.train:
        found = _hold_out(found)
    return _checked(found)


def labels_of(images: ImageSet) -> NDArray[np.int64]:
    """The labels, which are there."""
    assert images.labels is not None
    return images.labels


def _digits() -> TrainingData:
    """The digits of scikit-learn: 1,797 grey images of 8 x 8 pixels (UCI's optical recognition of digits)."""
    datasets = require("sklearn.datasets", "--data digits")
    images, labels = datasets.load_digits(return_X_y=True)
    grey = np.round(images.reshape(-1, 8, 8, 1) * _SMALLEST_DIGIT_STEP).astype(np.uint8)
    rows = Rows(np.repeat(grey, 3, axis=3), labels.astype(np.int64))
    # the last writers alone wrote the last images, so the test images are spread
    tested = np.arange(len(rows.labels)) % 5 == 4
    train, test = (Rows(rows.images[chosen], rows.labels[chosen]) for chosen in (~tested, tested))
    return replace(_of_rows(DIGITS, train, test, tuple("0123456789")), mirrored=False)


def _from_path(path: Path) -> TrainingData:
    if not path.exists():
        raise DataError(
            f"{path} does not exist: pass --data a folder, an .npz, CIFAR's binary files, or digits"
        )
    if path.is_file():
        return _archive(path)
    inner = next(
        (path / name for name in ("cifar-10-batches-bin", "cifar-100-binary") if (path / name).is_dir()), path
    )
    if (cifar := read_cifar(inner)) is not None:
        train, test, names = cifar
        return _of_rows(path.name, train, test, names)
    if (path / "train.npz").is_file():
        return _parts(path.name, path / "train.npz", path / "test.npz")
    if (path / "train").is_dir():
        tests = next((path / name for name in _TESTS if (path / name).is_dir()), None)
        return _parts(path.name, path / "train", tests)
    return _parts(path.name, path, None)


def _parts(name: str, train: Path, test: Path | None) -> TrainingData:
    images = _labelled(train, None)
    names = images.class_names
    tests = images if test is None or not test.exists() else _labelled(test, names)
    return _made(name, images, tests, names)


def _labelled(path: Path, names: Sequence[str] | None) -> ImageSet:
    images = open_image_set(path, need_labels=True, known=names)
    if names is not None and images.class_names is not None and tuple(names) != images.class_names:
        raise DataError(
            f"{path} has the classes {', '.join(images.class_names[:4])}…, the training images "
            f"{', '.join(names[:4])}…: the folders of both must have the same names"
        )
    return images


def _archive(path: Path) -> TrainingData:
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = next((keys for keys in _PAIRS if set(keys) <= set(archive.files)), None)
            if keys is None:
                return _parts(path.name, path, None)
            arrays = [archive[key] for key in keys]
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"{path} is not an .npz of plain arrays ({reason_of(error)}): write it with numpy.savez"
        ) from None
    for key, images in zip(keys[::2], arrays[::2], strict=True):
        if images.dtype != np.uint8:
            raise DataError(
                f"{path}: {key} is {images.dtype}: save uint8 pixels [N, H, W, C], augmentation needs them"
            )
    train, test = (Rows(arrays[i], _whole(arrays[i + 1], path, keys[i + 1])) for i in (0, 2))
    return _of_rows(path.name, train, test, None)


def _whole(labels: NDArray[Any], path: Path, key: str) -> NDArray[np.int64]:
    """Labels of any dtype whose values are class indices."""
    flat = labels.reshape(-1)
    if flat.dtype.kind not in "biuf" or not np.array_equal(flat, np.floor(flat)):
        raise DataError(f"{path}: {key} has other values than class indices: save whole numbers from 0")
    return flat.astype(np.int64)


def _of_rows(name: str, train: Rows, test: Rows, names: tuple[str, ...] | None) -> TrainingData:
    images, tests = [
        open_image_set(InMemoryImages(rows.images, rows.labels, name), need_labels=True)
        for rows in (train, test)
    ]
    return _made(name, images, tests, names)


def _made(name: str, train: ImageSet, test: ImageSet, names: tuple[str, ...] | None) -> TrainingData:
    classes = len(names) if names else int(labels_of(train).max()) + 1
    return TrainingData(
        name=name, train=train, test=test, classes=classes, class_names=names, fingerprint=_fingerprint(train)
    )


def _fingerprint(images: ImageSet) -> str:
    """SHA-256 over names and labels, and the pixels where they are in memory or in one file."""
    digest = hashlib.sha256(labels_of(images).tobytes())
    digest.update("\0".join(images.images.names).encode("utf-8", "surrogateescape"))
    if not images.by_folder:
        for content in images.images.contents():
            digest.update(content)
    return digest.hexdigest()


def _hold_out(found: TrainingData) -> TrainingData:
    chosen = np.arange(len(found.train)) % HELD_OUT == HELD_OUT - 1
    if not chosen.any():
        raise DataError(
            f"{found.name} has {counted(len(found.train), 'image')} and no test images: pass --validation-set"
        )
    note = (
        f"no test images were given: every {HELD_OUT}th image of {found.name} is kept for tests; pass --validation-set "
        "to test on others"
    )
    return replace(
        found, train=found.train.part(~chosen), test=found.train.part(chosen), notes=(*found.notes, note)
    )


def _checked(found: TrainingData) -> TrainingData:
    for images in (found.train, found.test):
        labels = labels_of(images)
        if labels.max() >= found.classes:
            raise DataError(
                f"{images.source} has a label of {labels.max()}, and the training images have "
                f"{counted(found.classes, 'class')[:-1] + 'es'}: both need the same classes, counted from 0"
            )
    if found.classes < 2:
        raise DataError(f"all images of {found.name} are of one class: a network needs two or more to learn")
    return found
