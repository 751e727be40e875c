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

ORIENTATION = 0x0112
_SIXTEEN_BIT = {"I", "I;16", "I;16L", "I;16B", "I;16N"}

MAX_SIDE = 8192
"""Largest side of a resize or crop in pixels."""

Size = int | tuple[int, int]
"""A side, or height and width. ``Preprocess`` checks the bounds: msgspec crashes where such a union has them."""
Color = Literal["RGB", "BGR", "GRAY", "RGBA"]
CHANNELS: dict[Color, int] = {"RGB": 3, "BGR": 3, "GRAY": 1, "RGBA": 4}
Channels = Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=4)]


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """Steps from a photograph to the network's input; ``mean`` and ``std`` apply to values in [0, 1].

    Both are in the order of ``color``. Fields with a default are written only where they differ from it, so that
    files without them keep their digests.

    Raises:
        ValueError: std is not positive, ``resize`` is smaller than ``crop``, or a number of values does not fit.
    """

    resize: Size | None
    """Shorter side after resizing; height and width, which do not keep the ratio; None leaves the size as it is."""
    crop: Size
    """Side, or height and width, of the centre crop."""
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: Channels
    std: Channels
    color: Color
    """GRAY is one channel of luma (ITU-R 601); RGBA keeps the transparency, which is laid over white elsewhere."""
    mean_image: bytes = b""
    """[C, H, W] float32 in [0, 1], little-endian, of the crop's size, subtracted at each pixel; ``mean`` is zero then.
    Empty where there is none."""

    def __post_init__(self) -> None:
        for name, size in (("resize", self.resize), ("crop", self.crop)):
            if size is not None and not all(1 <= side <= MAX_SIDE for side in _pair(size)):
                raise ValueError(f"{name} is {size_words(size)}: it must lie between 1 and {MAX_SIDE}")
        if not all(0 < value < float("inf") for value in self.std):
            raise ValueError(f"std is {self.std}: each channel's value must be positive")
        if not all(abs(value) < float("inf") for value in self.mean):
            raise ValueError(f"mean is {self.mean}: each channel's value must be a finite number")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"mean has {len(self.mean)} and std {len(self.std)} values: {self.color} has {self.channels}"
            )
        # a resize to one side says nothing about the other, which is seen when the photograph comes
        crop = (min(self.size),) * 2 if isinstance(self.resize, int) else self.size
        if self.resize is not None and any(
            side < least for side, least in zip(_pair(self.resize), crop, strict=True)
        ):
            raise ValueError(
                f"resize {size_words(self.resize)} is smaller than crop {size_words(self.crop)}: "
                "resize to at least the crop"
            )
        if self.mean_image:
            self._check_mean_image()

    def _check_mean_image(self) -> None:
        height, width = self.size
        if len(self.mean_image) != 4 * self.channels * height * width or any(self.mean):
            raise ValueError(
                f"mean_image must have {self.channels} x {height} x {width} values, and mean be zero"
            )
        if not np.isfinite(self.subtracted()).all():
            raise ValueError("mean_image must have finite values")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input."""
        return _pair(self.crop)

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return CHANNELS[self.color]

    def subtracted(self) -> NDArray[np.float32]:
        """The mean [C, 1, 1], or the mean image [C, H, W]."""
        if self.mean_image:
            return np.frombuffer(self.mean_image, "<f4").reshape(self.channels, *self.size)
        return np.array(self.mean, np.float32)[:, None, None]

    def at(self, size: tuple[int, int]) -> Preprocess:
        """The same steps for an input of ``size``, height and width; raises ValueError with a mean image."""
        crop: Size = size[0] if size[0] == size[1] else size
        return msgspec.structs.replace(self, crop=crop, resize=self.resize_for(crop))

    def resize_for(self, crop: Size) -> Size | None:
        """``resize`` for another ``crop``, in the same proportion; where either is not square, to its whole size."""
        if self.resize is None or crop == self.crop:
            return self.resize
        if isinstance(self.resize, tuple):
            sides = zip(self.resize, _pair(crop), self.size, strict=True)
            tall, wide = (min(round(side * now / then), MAX_SIDE) for side, now, then in sides)
            return tall, wide
        if isinstance(crop, tuple) or isinstance(self.crop, tuple):
            return _pair(crop)
        return min(round(self.resize * crop / self.crop), MAX_SIDE)

    def __str__(self) -> str:
        steps = [f"crop {size_words(self.crop)}", self.color]
        if self.resize is not None:
            ratio = " without keeping the ratio" if isinstance(self.resize, tuple) else ""
            steps.insert(0, f"resize {size_words(self.resize)} {self.interpolation}{ratio}")
        mean = "mean image" if self.mean_image else f"mean {list(self.mean)}"
        return ", ".join([*steps, mean, f"std {list(self.std)}"])

    def difference(self, other: Preprocess) -> str | None:
        """The first field that differs from ``other``'s, with both values, in words; None where none does."""
        for field in self.__struct_fields__:
            mine, its = getattr(self, field), getattr(other, field)
            if mine != its:
                return (
                    "the mean image differs"
                    if field == "mean_image"
                    else f"{field} was {mine}, here it is {its}"
                )
        return None


def size_words(size: Size | None) -> str:
    """A size as the command line writes it: ``224``, or ``256x128`` for height and width."""
    return f"{size[0]}x{size[1]}" if isinstance(size, tuple) else str(size)


IMAGENET = Preprocess(
    resize=256,
    crop=224,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    color="RGB",
)
"""torchvision's evaluation preprocessing."""

CIFAR = msgspec.structs.replace(IMAGENET, resize=32, crop=32)
"""akamaster's CIFAR-10 preprocessing: ImageNet statistics. Images of 32 pixels stay as they are, and photographs are
resized: the middle 32 pixels of one show nothing."""


def to_uint8(image: Image | NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Pixels [H, W, C] of ``image``, a PIL image or a uint8 array [H, W] or [H, W, 1, 3 or 4].

    Raises:
        ImageSetError: the image is smaller than the crop, is too elongated to resize, or has no 8-bit meaning.
    """
    resized = _resize(to_color(image, preprocess.color), preprocess)
    (width, height), (crop_height, crop_width) = resized.size, preprocess.size
    if width < crop_width or height < crop_height:
        raise ImageSetError(
            f"the image is {width}x{height}, smaller than the {crop_width}x{crop_height} crop: "
            "use larger images, or a preprocessing with resize"
        )
    left, top = round((width - crop_width) / 2), round((height - crop_height) / 2)
    pixels = np.asarray(resized.crop((left, top, left + crop_width, top + crop_height)))
    pixels = pixels.reshape(crop_height, crop_width, preprocess.channels)
    return np.ascontiguousarray(pixels[..., ::-1] if preprocess.color == "BGR" else pixels)


def normalize(images: NDArray[np.uint8] | NDArray[np.float32], preprocess: Preprocess) -> NDArray[np.float32]:
    """(x / 255 - mean) / std in fp32: uint8 [N, H, W, C] to float32 [N, C, H, W].

    Floats are images that a program normalized itself; only their layout changes.
    """
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    if images.dtype == np.float32:
        return planes
    planes /= np.float32(255)
    planes -= preprocess.subtracted()
    planes /= np.array(preprocess.std, np.float32)[:, None, None]
    return planes


def to_color(image: Image | NDArray[np.uint8], color: Color) -> Image:
    """``image`` upright and in 8 bits, with the channels of ``color``; BGR is still RGB here.

    Raises:
        ImageSetError: as ``to_rgb``.
    """
    if color == "RGBA":
        return _upright(image).convert("RGBA")
    rgb = to_rgb(image)
    return rgb.convert("L") if color == "GRAY" else rgb


def to_rgb(image: Image | NDArray[np.uint8]) -> Image:
    """``image`` upright (EXIF) and as 8-bit RGB: 16 bits are scaled to 8, transparent pixels become white.

    Raises:
        ImageSetError: an array of another shape or type, or pixels whose range is unknown (floating point).
    """
    from PIL import Image

    upright = _upright(image)
    if upright.mode == "RGB" and "transparency" not in upright.info:
        return upright
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright).convert("RGB")
    return upright.convert("RGB")


def _upright(image: Image | NDArray[np.uint8]) -> Image:
    """``image`` turned as its EXIF orientation says, with 8 bits."""
    from PIL import ImageOps

    upright = _from_array(image) if isinstance(image, np.ndarray) else image
    if upright.getexif().get(ORIENTATION, 1) != 1:
        upright = ImageOps.exif_transpose(upright)
    if upright.mode in _SIXTEEN_BIT:
        upright = _from_sixteen_bit(upright)
    if upright.mode == "F":
        raise ImageSetError("the image has floating-point pixels of unknown range: save it as 8-bit RGB")
    return upright


def _from_array(array: NDArray[np.uint8]) -> Image:
    from PIL import Image

    if array.dtype != np.uint8 or array.ndim not in {2, 3} or array.shape[2:] not in {(), (1,), (3,), (4,)}:
        raise ImageSetError(f"the image is an array {array.dtype} {list(array.shape)}: pass uint8 [H, W, 3]")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _from_sixteen_bit(image: Image) -> Image:
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageSetError("the image has pixels of more than 16 bits: save it as 8-bit RGB")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _resize(image: Image, preprocess: Preprocess) -> Image:
    from PIL.Image import Resampling

    size = _resized(image.size, preprocess.resize)
    if size == image.size:
        return image
    return image.resize(size, Resampling[preprocess.interpolation.upper()])


def _resized(size: tuple[int, int], resize: Size | None) -> tuple[int, int]:
    """Width and height after resizing an image of width and height ``size``."""
    if resize is None:
        return size
    if isinstance(resize, tuple):
        return resize[1], resize[0]
    (width, height), short = size, min(size)
    if short == resize:
        return size
    longer = int(resize * max(size) / short)
    if longer * resize > MAX_PIXELS:
        raise ImageSetError(f"the image is {width}x{height}, too elongated to be resized: crop it")
    return (resize, longer) if width <= height else (longer, resize)
