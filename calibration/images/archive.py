"""``.npz`` archives with ``images`` (uint8 [N, H, W, 3], or with 1 or 4 channels) and ``labels`` (integers [N]).

Images are streamed out of the archive one by one, compressed or not, so memory does not grow with its size, and
nothing in it is ever unpickled.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from io import SEEK_CUR
from math import prod
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from calibration.errors import ImageSetError
from calibration.images.contents import HashedContents
from calibration.images.files import bytes_allowed
from calibration.images.labels_csv import MAX_CLASSES
from calibration.preprocess import Preprocess, to_uint8

_MOST_SMALL_IMAGES = 100_000
"""Images that an archive may have beyond one for each of its bytes."""
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError),
    *(MemoryError, OverflowError, SyntaxError, TokenError, RecursionError),  # false sizes in a header
)


@dataclass(frozen=True)
class ArchiveImages(HashedContents):
    """Images ``indices`` (ascending) of an archive as a source; see ``ImageSource``."""

    path: Path
    shape: tuple[int, ...]
    """[H, W, C] of each image."""
    indices: tuple[int, ...]
    _digests: dict[int, bytes] = field(default_factory=dict, compare=False, repr=False)
    """SHA-256 of the images that were read so far, to read the archive once; shared with its parts."""

    @property
    def names(self) -> tuple[str, ...]:
        """``images[7]`` and so on."""
        return tuple(f"images[{index}]" for index in self.indices)

    def part(self, places: Sequence[int]) -> ArchiveImages:
        """The images at ``places``, which ascend."""
        return replace(self, indices=tuple(self.indices[place] for place in places))

    def decoders(self) -> Iterator[Callable[[Preprocess], NDArray[np.uint8]]]:
        """One function per image, in order."""
        for index, data in zip(self.indices, self.contents(), strict=True):
            self._digests[index] = hashlib.sha256(data).digest()
            yield partial(
                _decode, np.frombuffer(data, np.uint8).reshape(self.shape), f"{self.path} images[{index}]"
            )

    def contents(self) -> Iterator[bytes]:
        """The bytes of each image, in order."""
        size, position = prod(self.shape), 0
        with _member(self.path, "images") as file:
            _header(file)
            for index in self.indices:
                # not image by image, which takes a fifth longer where most of many small ones are left out
                file.seek((index - position) * size, SEEK_CUR)
                yield _read(file, size)
                position = index + 1

    def digests(self) -> Iterator[bytes]:
        """SHA-256 of the bytes of each image, in order."""
        if self._digests.keys() >= set(self.indices):
            return (self._digests[index] for index in self.indices)
        return super().digests()


def list_archive(path: Path) -> tuple[int, tuple[int, ...], NDArray[np.int64] | None]:
    """Number of images, shape of each, and their labels [N] where the archive has them.

    Raises:
        ImageSetError: it is not an ``.npz``, lacks ``images``, or holds arrays of another shape or type.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = set(archive.namelist())
    except _DAMAGE as error:
        raise ImageSetError(f"{path} is not an .npz archive ({error}): write it with numpy.savez") from None
    if "images.npy" not in members:
        raise ImageSetError(
            f"{path} has no array 'images': save it with numpy.savez(file, images=..., labels=...)"
        )
    with _member(path, "images") as file:
        shape, fortran_order, dtype = _header(file)
    _refuse_inflated(path, shape)
    if (
        dtype != np.uint8
        or len(shape) != 4
        or shape[3] not in {1, 3, 4}
        or not all(shape[1:])
        or fortran_order
    ):
        order = " in Fortran order" if fortran_order else ""
        raise ImageSetError(
            f"{path}: images are {dtype} {list(shape)}{order}: save them as contiguous uint8 [N, H, W, 3]"
        )
    return shape[0], shape[1:], _labels(path, shape[0]) if "labels.npy" in members else None


def _refuse_inflated(path: Path, shape: tuple[int, ...]) -> None:
    """Refuse images that take far more memory than the file does, before any is read."""
    size = path.stat().st_size
    if prod(shape[1:]) > bytes_allowed(size) or not 0 <= shape[0] <= size + _MOST_SMALL_IMAGES:
        raise ImageSetError(
            f"{path} claims {list(shape)} values in {size:,} bytes, far more than it can hold: write the archive again"
        )


def _labels(path: Path, count: int) -> NDArray[np.int64]:
    with _member(path, "labels") as file:
        shape, _, dtype = _header(file)
        if dtype.kind not in "iu" or shape not in {(count,), (count, 1)}:
            raise ImageSetError(
                f"{path}: labels are {dtype} {list(shape)}: save one integer for each of the {count} images"
            )
        labels = np.frombuffer(_read(file, prod(shape) * dtype.itemsize), dtype).reshape(shape)
    labels = labels.reshape(count)
    if count and not (labels.min() >= 0 and labels.max() < MAX_CLASSES):
        raise ImageSetError(
            f"{path}: labels lie in {labels.min()}..{labels.max()}: save class indices counted from 0"
        )
    return labels.astype(np.int64)


@contextmanager
def _member(path: Path, name: str) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            yield file
    except _DAMAGE as error:
        raise ImageSetError(
            f"{path}: the array '{name}' cannot be read ({error}): write the archive again"
        ) from None


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    version = npy.read_magic(file)
    return npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)


def _read(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("it ends too early")
    return data


def _decode(image: NDArray[np.uint8], name: str, preprocess: Preprocess) -> NDArray[np.uint8]:
    try:
        return to_uint8(image, preprocess)
    except ImageSetError as error:
        raise ImageSetError(f"{name}: {error}") from None
