"""Images in a folder, and the class of each: by a table, by class folders, or unknown."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from calibration.errors import ImageSetError
from calibration.file_names import text_of
from calibration.images.labels_csv import has_labels, read_labels

SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".jpe",
        ".png",
        ".bmp",
        ".gif",
        ".ppm",
        ".pgm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
UNREAD = frozenset(
    {".avif", ".jp2", ".eps", ".heic", ".heif", ".jxl", ".dng", ".nef", ".cr2", ".arw", ".dcm", ".svg"}
)
"""Kinds of image files that are not read."""
_SPLITS = frozenset(
    [
        "train",
        "training",
        "train_set",
        "val",
        "valid",
        "validation",
        "val_set",
        "test",
        "testing",
        "test_set",
        "eval",
        "dev",
        "holdout",
    ]
)
"""Names of folders that divide a data set, and are not classes."""


@dataclass(frozen=True)
class Listing:
    """Images of a folder: file names relative to ``root`` in sorted order, with their labels where it has them."""

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    by_folder: bool = False
    """Whether a label is the position of a folder or name; it is the network's class only if every class has one."""
    unread: tuple[str, ...] = ()
    """Image files of kinds that are not read."""


def list_folder(folder: Path, known: Sequence[str] | None = None) -> Listing:
    """List ``folder``: a table (``labels.csv``, ``metadata.csv``), class folders, or flat.

    A class folder is found by its name in ``known``, the network's classes. Where no name is known, a number is the
    class's index, and other folders are classes in the order of their names.

    Raises:
        ImageSetError: it has none of these forms, mixes them, holds no image or cannot be read; or some of its class
            folders are among ``known`` and others are not.
    """
    try:
        entries = sorted(filter(_visible, folder.iterdir()), key=lambda entry: entry.name)
    except OSError as error:
        raise ImageSetError(f"{folder} cannot be read ({error.strerror}): check its permissions") from None
    if (table := _table(folder)) is not None:
        root = folder / "images" if (folder / "images").is_dir() else folder
        found = read_labels(table, root, known)
        files = tuple(sorted(found.rows))
        return Listing(root, files, tuple(found.rows[name] for name in files), found.names, found.by_name)
    loose = tuple(entry.name for entry in entries if _is_image(entry))
    classes = tuple(entry.name for entry in entries if entry.is_dir())
    nested = {name: sorted(_images_below(folder, name)) for name in classes}
    if loose and any(nested.values()):
        raise ImageSetError(
            f"{folder} holds loose images ({loose[0]}) beside folders of images: "
            "move every image into the folder of its class, or leave only loose images"
        )
    if classes == ("images",) and nested["images"]:
        raise ImageSetError(
            f"{folder} has images/ but no labels.csv: add one with the columns file,class_index, "
            f"or pass {folder / 'images'} to use the images without labels"
        )
    if not loose and not any(nested.values()):
        suffixes = " ".join(sorted(SUFFIXES))
        raise ImageSetError(f"{folder} holds no images: pass a folder with files of the kinds {suffixes}")
    unread = tuple(text_of(file.name) for file in sorted(folder.rglob("*")) if file.suffix.lower() in UNREAD)
    if loose:
        return Listing(folder, loose, unread=unread)
    _refuse_splits(folder, nested, known)
    return replace(_by_class(folder, nested, known), unread=unread)


def _table(folder: Path) -> Path | None:
    """The table that says the class of each image, if there is one."""
    if (folder / "labels.csv").is_file():
        return folder / "labels.csv"
    described = folder / "metadata.csv"
    return described if described.is_file() and has_labels(described) else None


def image_files(paths: Sequence[Path]) -> list[Path]:
    """``paths`` with the images of a folder, at any depth, in place of the folder.

    Raises:
        ImageSetError: a path does not exist, or a folder holds no image or cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(_images_below(path, ".")) if path.is_dir() else []
        found += [path / name for name in inside] or [path]
        if path.is_dir() and not inside:
            raise ImageSetError(f"{path} holds no images: pass image files, or a folder with some")
        if not path.exists():
            raise ImageSetError(f"image {path} cannot be read (No such file or directory): pass image files")
        if not (path.is_file() or path.is_dir()):
            # a pipe would be waited for, and images are not read from front to back
            raise ImageSetError(f"image {path} cannot be read (it is not a regular file): pass image files")
    return found


def _by_class(folder: Path, nested: dict[str, list[str]], known: Sequence[str] | None) -> Listing:
    places, names, by_folder = _places(folder, tuple(nested), known), None, False
    if places is None and all(name.isascii() and name.isdigit() for name in nested):
        places = {name: int(name) for name in sorted(nested, key=int)}
        if len(set(places.values())) < len(places):
            raise ImageSetError(f"{folder} has two folders of one class number, such as 1 and 01: merge them")
        names = tuple(places) if list(places.values()) == list(range(len(places))) else None
    elif places is None:
        places, names, by_folder = {name: index for index, name in enumerate(nested)}, tuple(nested), True
    labelled = sorted((file, places[name]) for name, files in nested.items() for file in files)
    files, labels = zip(*labelled, strict=True)
    return Listing(folder, files, labels, names, by_folder)


def _places(folder: Path, names: tuple[str, ...], known: Sequence[str] | None) -> dict[str, int] | None:
    """The class of each folder by its name; None where no name is that of a class.

    Raises:
        ImageSetError: some names are, and others are not, or a name is that of two classes.
    """
    indices: dict[str, list[int]] = {}
    for index, name in enumerate(known or ()):
        indices.setdefault(unicodedata.normalize("NFC", name), []).append(index)
    found = {name: indices.get(unicodedata.normalize("NFC", name), []) for name in names}
    strangers = [name for name, places in found.items() if not places]
    if len(strangers) == len(names):
        return None
    if strangers:
        others = f" and {len(strangers) - 3} more" if len(strangers) > 3 else ""
        named = ", ".join(f"'{text_of(name)}'" for name in strangers[:3])
        raise ImageSetError(
            f"{folder} has folders that are not classes of the network ({named}{others}), while others are: rename or "
            "remove them, or correct --classes"
        )
    twice = [name for name, places in found.items() if len(places) > 1]
    if twice:
        raise ImageSetError(
            f"'{text_of(twice[0])}' is the name of several classes, so its folder in {folder} could be any of them: "
            "write a labels.csv, or number the folders"
        )
    return {name: places[0] for name, places in found.items()}


def _refuse_splits(folder: Path, nested: dict[str, list[str]], known: Sequence[str] | None) -> None:
    """Refuse a data set of several splits, whose folders would be taken for classes."""
    if any(Path(file).parent == Path(name) for name, files in nested.items() for file in files):
        return
    below = {Path(file).parts[1] for files in nested.values() for file in files}
    splits = [name for name, files in nested.items() if files]
    if all(name.lower() in _SPLITS for name in splits) or (
        known and below <= set(known) and not set(splits) & set(known)
    ):
        listed = ", ".join(map(text_of, splits[:4]))
        raise ImageSetError(
            f"{folder} holds the folders {listed}, each with folders of classes ({text_of(min(below))}) in it: "
            f"pass one of them, such as {text_of(folder / splits[0])}"
        )


def _visible(entry: Path) -> bool:
    return not entry.name.startswith(".") and entry.name != "__MACOSX"


def _is_image(entry: Path) -> bool:
    return _visible(entry) and entry.suffix.lower() in SUFFIXES and entry.is_file()


def _images_below(root: Path, name: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Images below the folder ``name`` of ``root``, relative to ``root``. Links are followed, but not in circles."""
    here = os.path.realpath(root / name)
    if here in above:
        return
    try:
        entries = list((root / name).iterdir())
    except OSError as error:
        raise ImageSetError(
            f"{root / name} cannot be read ({error.strerror}): check its permissions"
        ) from None
    for entry in entries:
        if _is_image(entry):
            yield f"{name}/{entry.name}"
        elif _visible(entry) and entry.is_dir():
            yield from _images_below(root, f"{name}/{entry.name}", above | {here})
