"""Input images of an engine: their types, parts of a batch, and errors for images that do not fit."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from calibration.preprocess import Preprocess, Size, size_words
from rescompile.backends.zero_copy import DeviceImages
from rescompile.errors import UsageError
from rescompile.manifest import Manifest, TensorSpec

IMAGES = (np.ndarray, DeviceImages)
"""Types of images on the host, and on a GPU."""


def part(images: NDArray[Any] | DeviceImages, start: int, stop: int) -> NDArray[Any] | DeviceImages:
    """Images ``start`` to ``stop``, without copying."""
    return images[start:stop] if isinstance(images, np.ndarray) else images.part(start, stop)


def preprocess_at(manifest: Manifest, size: Size) -> Preprocess:
    """The engine's preprocessing for images of ``size``, a side or height and width.

    Raises:
        UsageError: the engine does not take it.
    """
    own, asked = manifest.preprocess, (size, size) if isinstance(size, int) else size
    if asked == own.size:
        return own
    if manifest.sizes is None or not manifest.sizes.holds(asked):
        takes = size_words(own.crop) if manifest.sizes is None else f"sizes from {manifest.sizes}"
        raise UsageError(
            f"the size {size_words(size)} was asked, but this engine takes {takes}; build with another --dynamic-size"
        )
    return own.at(asked)


def at_size(images: NDArray[Any], port: TensorSpec, size: tuple[int, int]) -> NDArray[Any]:
    """``images`` [N, ...] of the layout of ``port``, sampled to another height and width; nothing is interpolated."""
    for axis, side in zip(range(4)[port.sides], size, strict=True):
        images = images.take(np.arange(side) * images.shape[axis] // side, axis)
    return np.ascontiguousarray(images)


def refuse(images: Any, manifest: Manifest) -> NoReturn:
    """Explain why the engine of ``manifest`` does not take ``images``.

    Raises:
        UsageError: always.
    """
    expected = manifest.inputs[0]
    wanted = f"{expected.dtype} [N, {', '.join(_sides(manifest))}] ({expected.layout})"
    if not isinstance(images, IMAGES):
        kind = f"{type(images).__module__}.{type(images).__name__}"
        raise UsageError(f"the images are a {kind}; pass a NumPy array {wanted}")
    found = f"{images.dtype} {list(images.shape)}"
    if images.dtype != expected.dtype:
        raise UsageError(
            f"the images are {found}, but this engine takes {wanted}; convert them with "
            f"images.astype(np.{expected.dtype}), or make them with engine.preprocess"
        )
    if not manifest.takes(images.shape):
        raise UsageError(f"the images are {found}, but this engine takes {wanted}{_hint(images, manifest)}")
    raise UsageError(f"there are no images in {found}; pass one or more")


def refuse_not_finite(images: NDArray[Any]) -> None:
    """Refuse images [N, ...] with NaN or infinite values; one pass over the numbers where there are none.

    Raises:
        UsageError: a value is not finite.
    """
    if images.dtype.kind != "f":
        return
    with np.errstate(all="ignore"):
        total = _sum(images)
    # the sum of large values may overflow
    if math.isfinite(total):
        return
    wrong = np.flatnonzero(~np.isfinite(images.reshape(len(images), -1)).all(axis=1))
    if wrong.size:
        raise UsageError(
            f"image {wrong[0]} (counted from 0) has NaN or infinite values, which have no answer; mend the "
            "preprocessing, or load the engine with RunOptions(check_finite=False)"
        )


def _sum(images: NDArray[Any]) -> float:
    """A sum in any order, which is not finite where a value is not; up to three times as fast as ``images.sum()``."""
    if min(images.strides) == images.itemsize:  # rows lie together, in any layout
        return float(np.einsum(images, range(images.ndim), []))
    return float(images.sum())


def _sides(manifest: Manifest) -> list[str]:
    """Dimensions of one image in words, with the bounds of open ones."""
    fed, sizes = manifest.inputs[0], manifest.sizes
    if sizes is None:
        return [str(side) for side in fed.shape[1:]]
    bounds = zip(fed.of_size(sizes.min), fed.of_size(sizes.max), strict=True)
    return [str(low) if low == high else f"{low} to {high}" for low, high in bounds]


def _hint(images: NDArray[Any] | DeviceImages, manifest: Manifest) -> str:
    """The most likely mistake in a shape, as the end of a sentence."""
    if manifest.takes((1, *images.shape)):
        return "; add the batch dimension with images[None]"
    for axes in ((0, 3, 1, 2), (0, 2, 3, 1)):
        if images.ndim == 4 and manifest.takes(tuple(images.shape[axis] for axis in axes)):
            return f"; change the layout with images.transpose{axes}"
    if manifest.inputs[0].matches(images.shape):
        return "; resize them, or build with another --dynamic-size"
    return "; make them with engine.preprocess"
