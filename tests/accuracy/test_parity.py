"""Comparing two networks on an image set: the set must belong to the network, and both get the same images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.errors import ImageSetError
from calibration.images import open_image_set
from calibration.preprocess import CIFAR, normalize
from rescompile.accuracy.parity import image_batches, open_validation_set
from rescompile.manifest import TensorSpec


def test_class_folders_must_be_the_networks_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "a.png")

    def opened(classes: int) -> Any:
        return open_validation_set(
            tmp_path, classes=classes, limit=None, need_labels=True, skip_unreadable=False
        )

    assert opened(2).class_names == ("cat", "dog")
    with pytest.raises(ImageSetError, match=r"has 2 class folders, the network has 3 classes.*labels\.csv"):
        opened(3)


@pytest.mark.parametrize(
    "fed",
    [
        TensorSpec("input", (-1, 3, 32, 32), "float32", "NCHW"),
        TensorSpec("input", (-1, 32, 32, 3), "uint8", "NHWC"),
    ],
)
def test_both_networks_get_the_same_images(small: Path, fed: TensorSpec) -> None:
    batches = list(image_batches(open_image_set(small / "images.npz", limit=10), CIFAR, fed))
    assert [len(batch.reference) for batch in batches] == [8, 2]
    for batch in batches:
        assert batch.candidate.dtype == fed.dtype
        assert batch.candidate.shape[1:] == fed.shape[1:]
        given = normalize(batch.candidate, CIFAR) if fed.dtype == "uint8" else batch.candidate
        np.testing.assert_array_equal(given, batch.reference)
