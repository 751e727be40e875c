"""CIFAR-10 and CIFAR-100 in their published binary form: rows of label bytes and 3 x 32 x 32 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rescompile.errors import DataError, reason_of

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Form:
    train: tuple[str, ...]
    test: str
    names: str
    labels: int
    """Label bytes of a row, of which the last counts."""
    classes: int


_FORMS = (
    _Form(tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1, 10),
    _Form(("train.bin",), "test.bin", "fine_label_names.txt", 2, 100),
)
_PICKLES = ("data_batch_1", "train")
"""Files of the form for Python, which only running code can read."""


@dataclass(frozen=True)
class Rows:
    """Images uint8 [N, 32, 32, 3] and labels [N]."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_cifar(folder: Path) -> tuple[Rows, Rows, tuple[str, ...] | None] | None:
    """Training images, test images and class names; None where ``folder`` does not hold CIFAR.

    Raises:
        DataError: a file is missing or damaged, or the folder holds the form for Python.
    """
    for form in _FORMS:
        if (folder / form.train[0]).is_file():
            train = [_read(folder / name, form) for name in form.train]
            joined = Rows(
                np.concatenate([rows.images for rows in train]),
                np.concatenate([rows.labels for rows in train]),
            )
            return joined, _read(folder / form.test, form), _names(folder / form.names, form.classes)
    if any((folder / name).is_file() for name in _PICKLES) and not (folder / "train").is_dir():
        raise DataError(
            f"{folder} holds CIFAR as Python pickles, which could run code: download the binary version instead"
        )
    return None


def _read(path: Path, form: _Form) -> Rows:
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({reason_of(error)}): download the archive again") from None
    row = form.labels + _PIXELS
    if not len(data) or len(data) % row:
        raise DataError(f"{path} has {len(data)} bytes, not rows of {row}: download the archive again")
    rows = data.reshape(-1, row)
    labels = rows[:, form.labels - 1].astype(np.int64)
    if labels.max() >= form.classes:
        raise DataError(f"{path} has a label of {labels.max()}, with {form.classes} classes: it is damaged")
    pixels = rows[:, form.labels :].reshape(-1, 3, 32, 32)
    return Rows(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels)


def _names(path: Path, count: int) -> tuple[str, ...] | None:
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    return names if len(names) == count else None
