"""The built-in image set: random crops of photographs in the public domain, used where the user passes no images.

A few photographs, varied in scale, aspect, position, brightness, contrast and saturation, cover the activation
ranges of an ImageNet network well; they say nothing about other data. Origins: ``photographs/README.md`` beside the
JPEG files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.errors import CalibrationError
from calibration.images.contents import HashedContents
from calibration.images.image_set import ImageSet
from calibration.preprocess import Preprocess, to_rgb, to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image

SOURCE = "built-in photographs"
COUNT = 128
"""More crops of the same photographs no longer move the thresholds."""

PHOTOGRAPHS = ("coffee", "chelsea", "astronaut", "camera", "grass", "retina")

_AREA = (0.2, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_JITTER = (0.6, 1.4)


@dataclass(frozen=True)
class _Crop:
    """One calibration image: a part of a photograph, and the changes made to it."""

    photograph: str
    box: tuple[float, float, float, float]
    """Left, top, right, bottom in pixels of the photograph."""
    mirrored: bool
    brightness: float
    contrast: float
    saturation: float

    def pixels(self, preprocess: Preprocess) -> NDArray[np.uint8]:
        """The crop at the network's size [H, W, C]."""
        from PIL import ImageEnhance
        from PIL.Image import Resampling, Transpose

        image = _photograph(self.photograph)
        image = image.resize(
            preprocess.size[::-1], Resampling[preprocess.interpolation.upper()], box=self.box
        )
        if self.mirrored:
            image = image.transpose(Transpose.FLIP_LEFT_RIGHT)
        image = ImageEnhance.Brightness(image).enhance(self.brightness)
        image = ImageEnhance.Contrast(image).enhance(self.contrast)
        image = ImageEnhance.Color(image).enhance(self.saturation)
        return to_uint8(image, msgspec.structs.replace(preprocess, resize=None))


@dataclass(frozen=True)
class BuiltinImages(HashedContents):
    """Crops as a source of images; see ``ImageSource``."""

    crops: tuple[_Crop, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """``coffee 0`` and so on."""
        return tuple(f"{crop.photograph} {index}" for index, crop in enumerate(self.crops))

    def part(self, places: Sequence[int]) -> BuiltinImages:
        """The images at ``places``."""
        return BuiltinImages(tuple(self.crops[place] for place in places))

    def decoders(self) -> Iterator[Callable[[Preprocess], NDArray[np.uint8]]]:
        """One function per crop, in order."""
        return (crop.pixels for crop in self.crops)

    def contents(self) -> Iterator[bytes]:
        """The photograph's bytes and the recipe of each crop, in order; fingerprints depend on the recipe's text."""
        return (_stored(crop.photograph) + repr(crop).encode() for crop in self.crops)


def builtin_image_set(count: int = COUNT, seed: int = 0) -> ImageSet:
    """``count`` crops of the photographs in turn; the same ones for the same ``seed``.

    Raises:
        CalibrationError: ``count`` is less than 1.
    """
    if count < 1:
        raise CalibrationError(f"{count} built-in images were requested: request at least 1")
    rng = np.random.default_rng(seed)
    crops = tuple(_draw(PHOTOGRAPHS[index % len(PHOTOGRAPHS)], rng) for index in range(count))
    return ImageSet(source=SOURCE, images=BuiltinImages(crops), seed=seed)


def golden_images(preprocess: Preprocess, count: int = 4) -> NDArray[np.uint8]:
    """Centre crops [count, H, W, C] of the first photographs, for self-tests of engines.

    Where ``preprocess`` has no resize, the photographs are fitted to the crop, so that small crops show all of them.

    Raises:
        ValueError: ``count`` is not between 1 and the number of photographs.
    """
    if not 1 <= count <= len(PHOTOGRAPHS):
        raise ValueError(f"count is {count}: there are 1 to {len(PHOTOGRAPHS)} golden images")
    fitted = msgspec.structs.replace(preprocess, resize=preprocess.resize or preprocess.crop)
    return np.stack([to_uint8(_photograph(name), fitted) for name in PHOTOGRAPHS[:count]])


def _draw(photograph: str, rng: np.random.Generator) -> _Crop:
    width, height = _photograph(photograph).size
    area = rng.uniform(*_AREA) * width * height
    aspect = float(np.exp(rng.uniform(*np.log(_ASPECT))))
    crop_width, crop_height = min(width, (area * aspect) ** 0.5), min(height, (area / aspect) ** 0.5)
    left, top = rng.uniform(0, width - crop_width), rng.uniform(0, height - crop_height)
    brightness, contrast, saturation = (float(factor) for factor in rng.uniform(*_JITTER, size=3))
    return _Crop(
        photograph=photograph,
        box=(left, top, left + crop_width, top + crop_height),
        mirrored=bool(rng.random() < 0.5),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
    )


@cache
def _stored(name: str) -> bytes:
    return files("calibration").joinpath("photographs", f"{name}.jpg").read_bytes()


@cache
def _photograph(name: str) -> Image:
    from io import BytesIO

    from PIL import Image

    with Image.open(BytesIO(_stored(name)), formats=["JPEG"]) as image:
        image.load()
        return to_rgb(image)
