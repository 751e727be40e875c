"""Images in a folder, and the class of each: by ``labels.csv``, by class folders, or unknown."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from calibration.errors import ImageSetError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})

MAX_CLASSES = 1_000_000
"""A larger class index is a mistake in the file."""


@dataclass(frozen=True)
class Listing:
    """Images of a folder: file names relative to ``root`` in sorted order, with their labels where it has them."""

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] | None = None
    by_folder: bool = False
    """Whether a label is the position of a class folder; it is the network's class only if every class has a folder."""


def list_folder(folder: Path) -> Listing:
    """List ``folder``: ``labels.csv`` with ``images/``, class folders, or flat.

    Raises:
        ImageSetError: it has none of these forms, mixes them, holds no image or cannot be read.
    """
    try:
        entries = sorted(filter(_visible, folder.iterdir()), key=lambda entry: entry.name)
    except OSError as error:
        raise ImageSetError(f"{folder} cannot be read ({error.strerror}): check its permissions") from None
    if (folder / "labels.csv").is_file():
        return _list_csv(folder / "labels.csv", folder / "images")
    loose = tuple(entry.name for entry in entries if _is_image(entry))
    classes = tuple(entry.name for entry in entries if entry.is_dir())
    nested = {name: _images_below(folder, folder / name) for name in classes}
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
        known = " ".join(sorted(SUFFIXES))
        raise ImageSetError(f"{folder} holds no images: pass a folder with files of the kinds {known}")
    if loose:
        return Listing(folder, loose)
    labelled = sorted((name, label) for label, images in enumerate(nested.values()) for name in images)
    names, labels = zip(*labelled, strict=True)
    return Listing(folder, names, labels, classes, by_folder=True)


def _list_csv(path: Path, images: Path) -> Listing:
    rows: dict[str, int] = {}
    classes: dict[int, str] = {}
    for where, row in _csv_rows(path):
        name, label = _checked(row, where, images)
        if rows.setdefault(name, label) != label:
            raise ImageSetError(
                f"{where} gives '{name}' class {label}, an earlier line {rows[name]}: keep one of them"
            )
        called = row.get("name") or ""
        if classes.setdefault(label, called) != called:
            raise ImageSetError(
                f"{where} calls class {label} '{called}', an earlier line '{classes[label]}': use one name"
            )
    if not rows:
        raise ImageSetError(f"{path} lists no images: add lines with file,class_index")
    names = tuple(sorted(rows))
    named = any(classes.values())
    class_names = (
        tuple(classes.get(index) or str(index) for index in range(max(classes) + 1)) if named else None
    )
    return Listing(images, names, tuple(rows[name] for name in names), class_names)


def _csv_rows(path: Path) -> list[tuple[str, dict[str, str | None]]]:
    """Place (file and line) and content of every row of ``path``."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = {"file", "class_index"} - set(reader.fieldnames or ())
            if missing:
                raise ImageSetError(
                    f"{path} lacks the column {' and '.join(sorted(missing))}: its first line must be file,class_index"
                )
            return [(f"{path} line {reader.line_num}", row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ImageSetError(
            f"{path} is not a UTF-8 table of comma-separated values ({error}): save it as one"
        ) from None
    except OSError as error:
        raise ImageSetError(f"{path} cannot be read ({error.strerror}): check its permissions") from None


def _checked(row: dict[str, str | None], where: str, images: Path) -> tuple[str, int]:
    name, index = row["file"], row["class_index"]
    if not name or index is None:
        raise ImageSetError(f"{where} is incomplete: give a file and its class_index")
    digits = index.strip()
    label = int(digits) if digits.isascii() and digits.isdigit() and len(index) < 12 else MAX_CLASSES
    if label >= MAX_CLASSES:
        raise ImageSetError(
            f"{where} has class_index '{index}': write the number of the class, counted from 0"
        )
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ImageSetError(f"{where} names '{name}': files must lie inside {images}")
    if not (images / name).is_file():
        raise ImageSetError(
            f"{where} names '{name}', which is not in {images}: add the file or remove the line"
        )
    return name, label


def _visible(entry: Path) -> bool:
    return not entry.name.startswith(".") and entry.name != "__MACOSX"


def _is_image(entry: Path) -> bool:
    return _visible(entry) and entry.suffix.lower() in SUFFIXES and entry.is_file()


def _images_below(root: Path, folder: Path) -> list[str]:
    return [entry.relative_to(root).as_posix() for entry in folder.rglob("*") if _is_image(entry)]
