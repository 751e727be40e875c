"""Images that a program holds in memory: pixels, or floats that the program has normalized already."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import ImageSetError
from calibration.images.contents import HashedContents
from calibration.preprocess import Preprocess, to_uint8

_CHANNELS = (1, 3, 4)
"""Channels that photographs have."""


@dataclass(frozen=True, eq=False)
class InMemoryImages:
    """An image set in memory: uint8 pixels [N, H, W, C], or float32 network inputs [N, C, H, W].

    Raises:
        ImageSetError: another type or shape, no images, or another number of labels.
    """

    images: NDArray[np.uint8] | NDArray[np.float32]
    labels: NDArray[np.int64] | None = None
    name: str = "array"

    def __post_init__(self) -> None:
        images = self.images
        if images.dtype not in (np.uint8, np.float32) or images.ndim != 4 or not len(images):
            raise ImageSetError(
                f"{self.name} is an array {images.dtype} {list(images.shape)}: pass uint8 pixels [N, H, W, C], or "
                "float32 images [N, C, H, W] as the network takes them"
            )
        order = _other_order(images)
        if order is not None:
            raise ImageSetError(f"{self.name} is an array {images.dtype} {list(images.shape)}, {order}")
        if images.dtype == np.float32 and not np.isfinite(images).all():
            raise ImageSetError(f"{self.name} has values that are NaN or infinite: check its transform")
        if self.labels is not None and self.labels.shape != (len(images),):
            raise ImageSetError(
                f"{self.name} has {len(images)} images and labels {list(self.labels.shape)}: pass one label for each"
            )
        if self.labels is not None and self.labels.min() < 0:
            raise ImageSetError(f"{self.name} has negative labels: classes count from 0")

    def __str__(self) -> str:
        return self.name

    @property
    def normalized(self) -> bool:
        """Whether these are the network's inputs, and not pixels."""
        return self.images.dtype == np.float32


def _other_order(images: NDArray[Any]) -> str | None:
    """What to do where the axes of ``images`` are in the order of the other type; None where they may be right."""
    _, second, _, last = images.shape
    if images.dtype == np.uint8 and second in _CHANNELS and last not in _CHANNELS:
        return (
            "which looks like pixels [N, C, H, W]: pass [N, H, W, C], as images.transpose(0, 2, 3, 1) gives"
        )
    if images.dtype == np.float32 and second not in _CHANNELS and last in _CHANNELS:
        return (
            "which looks like images [N, H, W, C]: pass [N, C, H, W], as images.transpose(0, 3, 1, 2) gives"
        )
    return None


@dataclass(frozen=True, eq=False)
class ArrayImages(HashedContents):
    """Some images of an array, as the source of an image set."""

    images: NDArray[np.uint8] | NDArray[np.float32]
    chosen: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """One name per image, its index."""
        return tuple(str(index) for index in self.chosen)

    def part(self, places: Sequence[int]) -> ArrayImages:
        """The images at ``places``."""
        return ArrayImages(self.images, tuple(self.chosen[place] for place in places))

    def decoders(self) -> Iterator[Callable[[Preprocess], NDArray[np.uint8] | NDArray[np.float32]]]:
        """One function per image from preprocessing to [H, W, C]."""
        return (partial(self._decode, index) for index in self.chosen)

    def contents(self) -> Iterator[bytes]:
        """The bytes of each image."""
        for index in self.chosen:
            yield np.ascontiguousarray(self.images[index]).tobytes()

    def _decode(self, index: int, preprocess: Preprocess) -> NDArray[np.uint8] | NDArray[np.float32]:
        image: NDArray[Any] = self.images[index]
        if image.dtype == np.uint8:
            return to_uint8(image, preprocess)
        expected = (preprocess.channels, *preprocess.size)
        if image.shape != expected:
            raise ImageSetError(
                f"image {index} of the array is {list(image.shape)}, the network takes {list(expected)}: pass "
                "images of its size"
            )
        return image.transpose(1, 2, 0)
