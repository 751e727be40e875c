"""Images with values that are not finite are found, wherever the value lies and however the array lies in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from rescompile.errors import UsageError
from rescompile.runtime.inputs import refuse_not_finite

LAYOUTS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "contiguous": lambda images: images,
    "channels last": lambda images: images.transpose(0, 2, 3, 1),
    "batch last": lambda images: images.transpose(1, 2, 3, 0),
    "crop": lambda images: np.pad(images, ((0, 0), (0, 0), (1, 2), (3, 1)))[:, :, 1:-2, 3:-1],
    "flipped": lambda images: images[..., ::-1],
    "every other column": lambda images: np.repeat(images, 2, axis=3)[..., ::2],
    "one image for all": lambda images: np.broadcast_to(images[:1], images.shape),
}
SHAPE = (2, 3, 5, 7)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_value_that_is_not_finite_is_found_in_any_place(layout: str) -> None:
    change = LAYOUTS[layout]
    clean = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    refuse_not_finite(change(clean))
    largest = np.full(SHAPE, np.finfo(np.float32).max)
    refuse_not_finite(change(largest))
    refuse_not_finite(change(-largest))
    places = range(clean[0].size if layout == "one image for all" else clean.size)
    for place in places:
        for value in (np.nan, np.inf, -np.inf):
            images = clean.copy()
            images.reshape(-1)[place] = value
            with pytest.raises(UsageError, match="has NaN or infinite values"):
                refuse_not_finite(change(images))


def test_infinities_of_both_signs_do_not_cancel() -> None:
    images = np.zeros((3, 3, 64, 64), np.float32)
    images[1, 0, :, ::2], images[1, 0, :, 1::2] = np.inf, -np.inf
    with pytest.raises(UsageError, match=r"image 1 \(counted from 0\)"):
        refuse_not_finite(images)


def test_a_long_array_is_read_to_its_end() -> None:
    images = np.zeros((4, 3, 224, 224), np.float32)
    for place in (0, 15, 16, 150_527, 150_528, images.size // 2 + 3, images.size - 17, images.size - 1):
        images.reshape(-1)[place] = np.nan
        with pytest.raises(UsageError, match=rf"image {place // 150_528} "):
            refuse_not_finite(images)
        images.reshape(-1)[place] = 0
