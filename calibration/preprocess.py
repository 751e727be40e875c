"""Photographs to the network's input: resize, centre crop, colour order, normalization.

Calibration tables and engine manifests hold the same object, so that the two can be compared.
Geometry and rounding are torchvision's (``Resize``, ``CenterCrop``, ``ToTensor``, ``Normalize`` on PIL images).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.errors import ImageSetError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 1 << 27
"""Larger images are refused before they are decoded: 134 million pixels are 400 MB."""

_EXIF_ORIENTATION = 0x0112
_SIXTEEN_BIT = {"I", "I;16", "I;16L", "I;16B", "I;16N"}

Pixels = Annotated[int, msgspec.Meta(ge=1, le=8192)]


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Steps from a photograph to the network's input; ``mean`` and ``std`` apply to values in [0, 1].

    Both are in the order of ``color``.

    Raises:
        ValueError: std is not positive, or ``resize`` is smaller than ``crop``.
    """

    resize: Pixels | None
    """Shorter side after resizing; None leaves the size as it is."""
    crop: Pixels
    """Side of the centre crop."""
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    color: Literal["RGB", "BGR"]

    def __post_init__(self) -> None:
        if not all(0 < value < float("inf") for value in self.std):
            raise ValueError(f"std is {self.std}: each channel's value must be positive")
        if not all(abs(value) < float("inf") for value in self.mean):
            raise ValueError(f"mean is {self.mean}: each channel's value must be a finite number")
        if self.resize is not None and self.resize < self.crop:
            raise ValueError(
                f"resize {self.resize} is smaller than crop {self.crop}: resize to at least the crop"
            )


IMAGENET = Preprocess(
    resize=256,
    crop=224,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    color="RGB",
)
"""torchvision's evaluation preprocessing."""

CIFAR = msgspec.structs.replace(IMAGENET, resize=None, crop=32)
"""akamaster's CIFAR-10 preprocessing: ImageNet statistics, no resize."""


def to_uint8(image: Image | NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Pixels [crop, crop, 3] of ``image``, a PIL image or a uint8 array [H, W], [H, W, 3] or [H, W, 4].

    Raises:
        ImageSetError: the image is smaller than the crop, is too elongated to resize, or has no 8-bit meaning.
    """
    resized = _resize(to_rgb(image), preprocess)
    width, height = resized.size
    crop = preprocess.crop
    if min(width, height) < crop:
        raise ImageSetError(
            f"the image is {width}x{height}, smaller than the {crop}x{crop} crop: "
            "use larger images, or a preprocessing with resize"
        )
    left, top = round((width - crop) / 2), round((height - crop) / 2)
    pixels = np.asarray(resized.crop((left, top, left + crop, top + crop)))
    return np.ascontiguousarray(pixels[..., ::-1] if preprocess.color == "BGR" else pixels)


def normalize(images: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """(x / 255 - mean) / std in fp32: uint8 [N, H, W, 3] to float32 [N, 3, H, W]."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    planes /= np.float32(255)
    planes -= np.array(preprocess.mean, np.float32)[:, None, None]
    planes /= np.array(preprocess.std, np.float32)[:, None, None]
    return planes


def to_rgb(image: Image | NDArray[np.uint8]) -> Image:
    """``image`` upright (EXIF) and as 8-bit RGB: 16 bits are scaled to 8, transparent pixels become white.

    Raises:
        ImageSetError: an array of another shape or type, or pixels whose range is unknown (floating point).
    """
    from PIL import Image, ImageOps

    upright = _from_array(image) if isinstance(image, np.ndarray) else image
    if upright.getexif().get(_EXIF_ORIENTATION, 1) != 1:
        upright = ImageOps.exif_transpose(upright)
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return upright
    if upright.mode in _SIXTEEN_BIT:
        upright = _from_sixteen_bit(upright)
    if upright.mode == "F":
        raise ImageSetError("the image has floating-point pixels of unknown range: save it as 8-bit RGB")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright).convert("RGB")
    return upright.convert("RGB")


def _from_array(array: NDArray[np.uint8]) -> Image:
    from PIL import Image

    if array.dtype != np.uint8 or array.ndim not in {2, 3} or array.shape[2:] not in {(), (3,), (4,)}:
        raise ImageSetError(f"the image is an array {array.dtype} {list(array.shape)}: pass uint8 [H, W, 3]")
    return Image.fromarray(array)


def _from_sixteen_bit(image: Image) -> Image:
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageSetError("the image has pixels of more than 16 bits: save it as 8-bit RGB")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _resize(image: Image, preprocess: Preprocess) -> Image:
    from PIL.Image import Resampling

    short, long = sorted(image.size)
    if preprocess.resize is None or short == preprocess.resize:
        return image
    longer = int(preprocess.resize * long / short)
    if longer * preprocess.resize > MAX_PIXELS:
        raise ImageSetError(
            f"the image is {image.width}x{image.height}, too elongated to be resized: crop it"
        )
    size = (preprocess.resize, longer) if image.width <= image.height else (longer, preprocess.resize)
    return image.resize(size, Resampling[preprocess.interpolation.upper()])
