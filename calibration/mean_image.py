"""Mean images in pixel values of 0 to 255, as Caffe, Keras and NumPy users save them: ``.npy``, ``.npz``, binaryproto.

A Caffe binaryproto is one protobuf message, ``BlobProto``, whose few fields are read here by their numbers.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from calibration.errors import ImageSetError
from calibration.images.files import bytes_allowed

_LARGEST = 1 << 30
_REMEDY = "pass a .npy, an .npz with one array, or Caffe's mean.binaryproto"
_DAMAGE = (
    *(OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError, OverflowError),
    *(
        SyntaxError,
        TokenError,
        RecursionError,
        NotImplementedError,
        RuntimeError,
    ),  # headers and records of NumPy
)

_DIMENSIONS, _DATA, _SHAPE, _DOUBLES = (1, 2, 3, 4), 5, 7, 8
"""Field numbers of ``BlobProto``: num, channels, height and width, or a shape; floats, or doubles."""
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
"""Wire types of protobuf."""


@dataclass(frozen=True)
class MeanFile:
    """The values of a mean file as they are stored: [C], [H, W], [C, H, W] or [H, W, C], of 0 to 255."""

    path: Path
    values: NDArray[np.float32]
    from_caffe: bool

    def fitted(
        self, channels: int, size: tuple[int, int], resize: int | tuple[int, int] | None
    ) -> NDArray[np.float32]:
        """The mean [C], or the mean image [C, H, W] of height and width ``size``, in [0, 1].

        A mean image of the size before the crop is cropped as the photograph is.

        Raises:
            ImageSetError: it has another number of channels, or another size.
        """
        values, shape = self.values, self.values.shape
        if values.size == channels and max(shape) == channels:
            return (values.reshape(channels) / np.float64(255)).astype(np.float32)
        if values.ndim == 2 and channels == 1:
            values = values[None]
        elif values.ndim == 3 and shape[0] == channels and (shape[2] != channels or shape[1:] == size):
            pass
        elif values.ndim == 3 and shape[2] == channels:
            values = values.transpose(2, 0, 1)
        else:
            raise ImageSetError(
                f"{self.path} holds a mean of shape {list(shape)}, the network takes {channels} "
                f"channel{'s' * (channels > 1)} of {size[0]}x{size[1]} pixels: pass the mean that it was trained with"
            )
        before = (resize, resize) if isinstance(resize, int) else resize
        if values.shape[1:] not in (size, before):
            raise ImageSetError(
                f"{self.path} is a mean image of {values.shape[1]}x{values.shape[2]} pixels, the network takes "
                f"{size[0]}x{size[1]}: pass one of that size, or --resize with its size"
            )
        top, left = (round((have - want) / 2) for have, want in zip(values.shape[1:], size, strict=True))
        cropped = values[:, top : top + size[0], left : left + size[1]]
        return (cropped / np.float64(255)).astype(np.float32)


def read_mean(path: Path) -> MeanFile:
    """Read a mean file.

    Raises:
        ImageSetError: it does not exist, is none of the three kinds, or its values are not pixel values of 0 to 255.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ImageSetError(f"{path} is too large for a mean image: {_REMEDY}")
        with path.open("rb") as file:
            begin = file.read(6)
        numpy = begin == b"\x93NUMPY" or begin[:2] == b"PK"
        values = _numpy_array(path) if numpy else _blob(path.read_bytes())
    except FileNotFoundError:
        raise ImageSetError(f"{path} does not exist: {_REMEDY}") from None
    except _DAMAGE as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        raise ImageSetError(f"{path} cannot be read as a mean image ({reason}): {_REMEDY}") from None
    if values.dtype.kind not in "fiu" or not 1 <= values.ndim <= 4 or values.size == 0:
        raise ImageSetError(
            f"{path} holds an array {values.dtype} {list(values.shape)}, which is not a mean image: {_REMEDY}"
        )
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255):
        raise ImageSetError(f"{path} has values outside of 0 to 255: pass the mean of the pixel values")
    if values.max() <= 1:
        raise ImageSetError(
            f"{path} has values of 0 to {values.max():.3g}, the mean of pixels divided by 255: "
            "multiply it by 255"
        )
    return MeanFile(path, values.astype(np.float32), from_caffe=not numpy)


def _numpy_array(path: Path) -> NDArray[np.generic]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inflated = sum(entry.file_size for entry in archive.infolist())
        if inflated > bytes_allowed(path.stat().st_size):
            raise ValueError("it unpacks to far more than its size")
    with path.open("rb") as file:
        found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        names = list(found)
        if len(names) != 1 and "mean" not in names:
            raise ValueError(f"it holds {len(names)} arrays, none of them called mean")
        array: NDArray[np.generic] = found["mean" if "mean" in names else names[0]]
        return array


def _blob(message: bytes) -> NDArray[np.generic]:
    """The array in a ``BlobProto``."""
    dimensions: dict[int, int] = {}
    shape: list[int] = []
    data: list[bytes] = []
    kind = "<f4"
    for number, value in _fields(message):
        if number in _DIMENSIONS and isinstance(value, int):
            dimensions[number] = value
        elif number == _SHAPE and isinstance(value, bytes):
            for _, dims in _fields(value):
                shape += [dims] if isinstance(dims, int) else _varints(dims)
        elif number in {_DATA, _DOUBLES} and isinstance(value, bytes):
            kind = "<f4" if number == _DATA else "<f8"
            data.append(value)
    if not data:
        raise ValueError("it holds no values")
    return np.frombuffer(b"".join(data), kind).reshape(
        shape or [dimensions[key] for key in sorted(dimensions)]
    )


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of every field of a protobuf message."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        if wire == _BYTES:
            length, place = _varint(message, place)
        elif wire in {_FOUR_BYTES, _EIGHT_BYTES}:
            length = 4 if wire == _FOUR_BYTES else 8
        else:
            raise ValueError("its contents are not of a known kind")
        if length > len(message) - place:
            raise ValueError("its contents are cut off or not of a known kind")
        yield number, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """The number at ``place``, and the place behind it."""
    value = 0
    for shift in range(0, 64, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("its contents are cut off or not of a known kind")


def _varints(packed: bytes) -> list[int]:
    values, place = [], 0
    while place < len(packed):
        value, place = _varint(packed, place)
        values.append(value)
    return values
