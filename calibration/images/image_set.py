"""Image sets: images in a fixed order, and their pixels batch by batch.

Four forms are understood: a folder with one sub-folder per class, a folder with ``images/`` and ``labels.csv``
(``file,class_index``, optionally ``name``), a flat folder without labels, and an ``.npz`` with ``images`` and
``labels``. Order and selection depend on names and seed only, never on the file system.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from calibration.errors import ImageSetError
from calibration.file_names import text_of
from calibration.images.archive import ArchiveImages, list_archive
from calibration.images.arrays import ArrayImages, InMemoryImages
from calibration.images.files import ImageFiles, open_image
from calibration.images.listing import SUFFIXES, Listing, list_folder
from calibration.preprocess import Preprocess

_THREADS = 2
_LOOK_AHEAD = 8  # decoded images that may wait for their turn


Image = NDArray[np.uint8] | NDArray[np.float32]
"""Pixels, or what a program has normalized already."""


class ImageSource(Protocol):
    """Images of a set in a fixed order, as bytes and as pixels."""

    @property
    def names(self) -> tuple[str, ...]:
        """One name per image, unique within the set."""

    def part(self, places: Sequence[int]) -> ImageSource:
        """The images at ``places``, which ascend."""

    def decoders(self) -> Iterator[Callable[[Preprocess], Image]]:
        """One function per image from preprocessing to pixels [H, W, C]; run in any thread."""

    def contents(self) -> Iterator[bytes]:
        """The bytes of each image."""

    def digests(self) -> Iterator[bytes]:
        """SHA-256 of the bytes of each image, for the fingerprint."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Some images of a set."""

    images: Image  # [n, H, W, C]
    labels: NDArray[np.int64] | None  # [n]


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageSet:
    """Images in a fixed order, decoded only while ``batches`` is read."""

    source: str
    """Name of the folder or file, without its path."""
    images: ImageSource
    labels: NDArray[np.int64] | None = None
    class_names: tuple[str, ...] | None = None
    """Names by label, where the set names its classes."""
    by_folder: bool = False
    """See ``listing.Listing``."""
    seed: int = 0
    """Seed of the choice of images."""
    normalized: bool = False
    """Whether the images are the network's inputs as a program made them, and not pixels."""
    skipped: tuple[str, ...] = ()
    """Names of unreadable images that were left out."""
    unread: tuple[str, ...] = ()
    """Names of image files of kinds that are not read."""

    def __len__(self) -> int:
        return len(self.images.names)

    def part(self, chosen: NDArray[np.bool_]) -> ImageSet:
        """The images where ``chosen`` [N] is true."""
        labels = None if self.labels is None else self.labels[chosen]
        return replace(self, images=self.images.part(np.flatnonzero(chosen).tolist()), labels=labels)

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences for the user that name the images that were left out, where there are any."""
        kinds = (("unreadable images", self.skipped), ("image files of kinds that are not read", self.unread))
        return tuple(
            f"{len(names)} {kind} of {self.source} were left out: {', '.join(names[:5])}{', …' * (len(names) > 5)}"
            for kind, names in kinds
            if names
        )

    def remarks(self, classes: int, names: Sequence[str] | None) -> tuple[str, ...]:
        """Sentences about labels that may not mean the network's ``classes`` classes, called ``names``."""
        found = self.labels_from_one(classes)
        order = self._order_of_folders(names or ())
        return tuple(filter(None, (found, order)))

    def _order_of_folders(self, names: Sequence[str]) -> str | None:
        if not self.by_folder or self.class_names is None or len(names) != len(self.class_names):
            return None
        pairs = [
            f"'{text_of(folder)}' is '{name}'" for folder, name in zip(self.class_names, names, strict=True)
        ]
        return (
            f"no folder of {self.source} has the name of a class, so the folders are the classes in the order of their "
            f"names: {', '.join(pairs[:3])}{', …' if len(pairs) > 3 else ''}"
        )

    def labels_from_one(self, classes: int) -> str | None:
        """A sentence where the labels of a network with ``classes`` classes seem to count from 1, else None."""
        if self.labels is None or self.by_folder or classes < 2 or not len(self) or self.labels.min() != 1:
            return None
        highest = int(self.labels.max())
        seen = len(np.unique(self.labels))
        # of two classes, one alone may well be all that there is
        if highest != classes and (classes < 3 or (highest, seen) != (classes - 1, classes - 1)):
            return None
        return (
            f"the labels of {self.source} run from 1 to {highest} and never are 0, while classes count from 0 to "
            f"{classes - 1}: if they count from 1, subtract 1 from each"
        )

    def labels_fit(self, classes: int) -> bool:
        """Whether the labels can belong to a network with ``classes`` classes; False without labels."""
        if self.labels is None:
            return False
        named = len(self.class_names or ())
        return named == classes if self.by_folder else bool((self.labels < classes).all())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the names and contents of the images, in order.

        Raises:
            ImageSetError: an image can no longer be read.
        """
        digest = hashlib.sha256()
        for name, own in zip(self.images.names, self.images.digests(), strict=True):
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0" + own)
        return digest.hexdigest()

    def batches(self, preprocess: Preprocess, batch_size: int) -> Iterator[Batch]:
        """Every image once, in order; the last batch may be smaller. The next one is read meanwhile, in another thread.

        Raises:
            ImageSetError: an image is unreadable or does not suit ``preprocess``; the message names it.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        return _read_ahead(self._batches(preprocess, batch_size))

    def _batches(self, preprocess: Preprocess, batch_size: int) -> Iterator[Batch]:
        decoded = _decoded(self.images, preprocess)
        for start in range(0, len(self), batch_size):
            pixels: NDArray[Any] = np.stack(list(islice(decoded, batch_size)))
            yield Batch(pixels, None if self.labels is None else self.labels[start : start + batch_size])


def open_image_set(
    path: Path | str | InMemoryImages,
    *,
    limit: int | None = None,
    seed: int = 0,
    need_labels: bool = False,
    skip_unreadable: bool = False,
    known: Sequence[str] | None = None,
    single: bool = False,
) -> ImageSet:
    """Open the image set at ``path``, in any of the four forms, or one in memory.

    ``single`` allows a single image file, too: enough to look at, too few to calibrate or judge with.

    ``known`` are the names of the network's classes, by which ``list_folder`` finds class folders.

    At most ``limit`` images are drawn with ``seed``. With ``skip_unreadable`` every drawn image is decoded once
    at opening, so that length, labels and fingerprint count the readable ones only.

    Raises:
        ImageSetError: not an image set, no labels though they are needed, or no usable image.
    """
    path = Path(path) if isinstance(path, str) else path
    if isinstance(path, InMemoryImages):
        found = _open_array(path, limit, seed)
    elif path.is_dir():
        found = _open_folder(path, limit, seed, skip_unreadable=skip_unreadable, known=known)
    elif path.suffix.lower() == ".npz" and path.is_file():
        found = _open_archive(path, limit, seed)
    elif single and path.suffix.lower() in SUFFIXES and path.is_file():
        found = ImageSet(
            source=text_of(path.name), images=ImageFiles(path.parent, (path.name,)), labels=None, seed=seed
        )
    else:
        raise ImageSetError(_what_it_is(path))
    if need_labels and found.labels is None:
        raise ImageSetError(
            f"{path} has no labels, which are needed here: use one sub-folder per class, "
            "or images/ with a labels.csv (file,class_index), or an .npz with images and labels"
        )
    return found


def _open_folder(
    folder: Path, limit: int | None, seed: int, *, skip_unreadable: bool, known: Sequence[str] | None
) -> ImageSet:
    listing = list_folder(folder, known)
    chosen = _choose(len(listing.names), limit, seed)
    skipped: list[int] = []
    if skip_unreadable:
        skipped = _unreadable(listing, chosen)
        if len(skipped) == len(chosen):
            raise ImageSetError(f"{folder}: none of the {len(chosen)} images can be read: check the files")
        chosen = sorted(set(chosen) - set(skipped))
    labels = None if listing.labels is None else np.array(listing.labels, np.int64)[chosen]
    return ImageSet(
        source=text_of(folder.resolve().name),
        images=ImageFiles(listing.root, tuple(listing.names[index] for index in chosen)),
        labels=labels,
        class_names=listing.class_names,
        by_folder=listing.by_folder,
        seed=seed,
        skipped=tuple(text_of(listing.names[index]) for index in skipped),
        unread=listing.unread,
    )


def _open_archive(path: Path, limit: int | None, seed: int) -> ImageSet:
    count, shape, labels = list_archive(path)
    if count == 0:
        raise ImageSetError(f"{path} holds no images: its array 'images' is empty")
    chosen = _choose(count, limit, seed)
    return ImageSet(
        source=text_of(path.name),
        images=ArchiveImages(path, shape, tuple(chosen)),
        labels=None if labels is None else labels[chosen],
        seed=seed,
    )


def _open_array(array: InMemoryImages, limit: int | None, seed: int) -> ImageSet:
    chosen = _choose(len(array.images), limit, seed)
    return ImageSet(
        source=array.name,
        images=ArrayImages(array.images, tuple(chosen)),
        labels=None if array.labels is None else array.labels[chosen],
        seed=seed,
        normalized=array.normalized,
    )


def _choose(count: int, limit: int | None, seed: int) -> list[int]:
    """Indices in ascending order, ``limit`` of them at most."""
    if limit is not None and limit < 1:
        raise ImageSetError(f"a limit of {limit} leaves no images: allow at least 1")
    if limit is None or limit >= count:
        return list(range(count))
    drawn = np.random.default_rng(seed).choice(count, limit, replace=False)
    return sorted(int(index) for index in drawn)


def _what_it_is(path: Path) -> str:
    if not path.exists():
        return f"{path} does not exist: pass a folder of images or an .npz"
    if path.suffix.lower() in SUFFIXES:
        return f"{path} is a single image: pass the folder that holds it ({path.resolve().parent})"
    return f"{path} is not an image set: pass a folder of images or an .npz with images and labels"


def _unreadable(listing: Listing, chosen: list[int]) -> list[int]:
    def readable(index: int) -> bool:
        try:
            open_image(listing.root / listing.names[index])
        except ImageSetError:
            return False
        return True

    with ThreadPoolExecutor(_THREADS) as pool:
        return [index for index, good in zip(chosen, pool.map(readable, chosen), strict=True) if not good]


def _read_ahead(batches: Iterator[Batch]) -> Iterator[Batch]:
    """``batches``, each taken in another thread while the caller works with the one before."""
    with ThreadPoolExecutor(1, thread_name_prefix="read") as pool:
        coming = pool.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = pool.submit(next, batches, None)
            yield batch


def _decoded(source: ImageSource, preprocess: Preprocess) -> Iterator[Image]:
    """Pixels of every image in order, a few decoded ahead in other threads."""
    waiting: deque[Future[Image]] = deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="decode") as pool:
        try:
            for decode in source.decoders():
                waiting.append(pool.submit(decode, preprocess))
                if len(waiting) > _LOOK_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
