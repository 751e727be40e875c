"""Image files as a source of images, each decoded only when it is needed."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.errors import ImageSetError
from calibration.images.contents import HashedContents
from calibration.preprocess import MAX_PIXELS, ORIENTATION, Color, Preprocess, to_color, to_uint8

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Kinds of image files that are read. Pillow knows forty more, and starts other programs for some of them."""
_LEAVE_OUT = "remove it, or pass --skip-unreadable to go on without it"
_warning_filters = threading.Lock()  # Python's warning filters are global, and several threads decode


@dataclass(frozen=True)
class ImageFiles(HashedContents):
    """Files of one folder as a source of images; see ``ImageSource``."""

    root: Path
    names: tuple[str, ...]

    def part(self, places: Sequence[int]) -> ImageFiles:
        """The images at ``places``."""
        return ImageFiles(self.root, tuple(self.names[place] for place in places))

    def decoders(self) -> Iterator[Callable[[Preprocess], NDArray[np.uint8]]]:
        """One function per file, in order; each reads its file when called."""
        return (partial(decode, self.root / name) for name in self.names)

    def contents(self) -> Iterator[bytes]:
        """The bytes of each file, in order."""
        return (_read(self.root / name) for name in self.names)


def open_image(path: Path, *, color: Color = "RGB", remedy: str = _LEAVE_OUT) -> Image:
    """The whole image at ``path``, decoded, upright and in the channels of ``color``.

    Raises:
        ImageSetError: it cannot be read, is damaged or is too large to decode; the message ends with ``remedy``.
    """
    try:
        return _load(path, color)
    except Exception as error:  # image plugins raise all kinds of errors for damaged files
        raise ImageSetError(f"image {path} cannot be read ({_reason(error)}): {remedy}") from error


def decode(path: Path, preprocess: Preprocess, *, remedy: str = _LEAVE_OUT) -> NDArray[np.uint8]:
    """Pixels [H, W, C] of the image at ``path``; raises ImageSetError with its name and ``remedy``."""
    image = open_image(path, color=preprocess.color, remedy=remedy)
    try:
        return to_uint8(image, preprocess)
    except ImageSetError as error:
        raise ImageSetError(f"{path}: {error}") from None


def _load(path: Path, color: Color) -> Image:
    from PIL import Image

    with path.open("rb") as file:
        with _warning_filters, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(file, formats=FORMATS)
        size = os.fstat(file.fileno()).st_size
        if image.width * image.height > MAX_PIXELS or _memory(image) > bytes_allowed(size):
            raise Image.DecompressionBombError
        # asking for the orientation decodes some kinds of files
        if image.getexif().get(ORIENTATION, 1) != 1 and _memory(image, turned=True) > bytes_allowed(size):
            raise Image.DecompressionBombError
        image.load()
        return to_color(image, color)


def bytes_allowed(size: int) -> int:
    """Bytes of memory that reading a file of ``size`` bytes may take."""
    return 8 * size + 200_000_000


def _memory(image: Image, *, turned: bool = False) -> int:
    """Bytes of memory to decode ``image``, convert its colours and turn it upright; found without decoding it."""
    transparent = image.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in image.info
    stored = 4 if image.mode in {"RGB", "CMYK", "YCbCr", "LAB", "HSV"} else 5
    return image.width * image.height * ((20 if transparent else stored) + (4 if turned else 0))


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"it is not an image in a format that is read: {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return "it has too many pixels to decode for a file of its size"
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or str(error) or type(error).__name__


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImageSetError(f"image {path} cannot be read ({error.strerror})") from None
