"""Input images of an engine: their types, parts of a batch, and errors for images that do not fit."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.zero_copy import DeviceImages
from rescompile.errors import UsageError
from rescompile.manifest import TensorSpec

IMAGES = (np.ndarray, DeviceImages)
"""Types of images on the host, and on a GPU."""


def part(images: NDArray[Any] | DeviceImages, start: int, stop: int) -> NDArray[Any] | DeviceImages:
    """Images ``start`` to ``stop``, without copying."""
    return images[start:stop] if isinstance(images, np.ndarray) else images.part(start, stop)


def refuse(images: Any, expected: TensorSpec) -> NoReturn:
    """Explain why an engine that takes ``expected`` does not take ``images``.

    Raises:
        UsageError: always.
    """
    wanted = f"{expected.dtype} [N, {', '.join(map(str, expected.shape[1:]))}] ({expected.layout})"
    if not isinstance(images, IMAGES):
        kind = f"{type(images).__module__}.{type(images).__name__}"
        raise UsageError(f"the images are a {kind}; pass a NumPy array {wanted}")
    found = f"{images.dtype} {list(images.shape)}"
    if images.dtype != expected.dtype:
        raise UsageError(
            f"the images are {found}, but this engine takes {wanted}; convert them with "
            f"images.astype(np.{expected.dtype}), or make them with engine.preprocess"
        )
    if images.shape[1:] != expected.shape[1:]:
        raise UsageError(
            f"the images are {found}, but this engine takes {wanted}{_hint(images, expected.shape)}"
        )
    raise UsageError(f"there are no images in {found}; pass one or more")


def refuse_not_finite(images: NDArray[Any]) -> None:
    """Refuse images [N, ...] with NaN or infinite values; one pass over the numbers where there are none.

    Raises:
        UsageError: a value is not finite.
    """
    if images.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        total = float(images.sum())
    if math.isfinite(total):
        return
    wrong = np.flatnonzero(~np.isfinite(images.reshape(len(images), -1)).all(axis=1))
    if wrong.size:
        raise UsageError(
            f"image {wrong[0]} (counted from 0) has NaN or infinite values, which have no answer; mend the "
            "preprocessing, or load the engine with RunOptions(check_finite=False)"
        )


def _hint(images: NDArray[Any] | DeviceImages, expected: tuple[int, ...]) -> str:
    """The most likely mistake in a shape, as the end of a sentence."""
    if images.shape == expected[1:]:
        return "; add the batch dimension with images[None]"
    for axes in ((0, 3, 1, 2), (0, 2, 3, 1)):
        if images.ndim == 4 and tuple(images.shape[axis] for axis in axes)[1:] == expected[1:]:
            return f"; change the layout with images.transpose{axes}"
    return "; make them with engine.preprocess"
