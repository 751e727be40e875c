"""A table of labels: the class of each file, by number or by name, and optionally the name of each number.

It is ``labels.csv`` beside ``images/`` or beside the images themselves, or Hugging Face's ``metadata.csv``.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.errors import ImageSetError

MAX_CLASSES = 1_000_000
"""A larger class index is a mistake in the file."""
_SEPARATORS = ",;\t"
"""Spreadsheets of many countries write semicolons."""
_FILE = ("file", "file_name", "filename", "file_path", "filepath", "path", "image", "image_id")
_CLASS = ("class_index", "label", "class", "class_id", "label_id", "target", "category")
_NAME = ("name", "class_name")


@dataclass(frozen=True)
class LabelTable:
    """The class of every listed file, and what the classes are called where the table says it."""

    rows: dict[str, int]
    names: tuple[str, ...] | None
    by_name: bool = False
    """Whether a label is the position of a name among the table's own, which is the network's only if it has all."""


@dataclass(frozen=True)
class _Row:
    where: str
    """File and line."""
    file: str
    label: str
    """Number or name of the class."""
    name: str
    """Name of the class beside its number; empty where there is none."""


def read_labels(path: Path, images: Path, known: Sequence[str] | None) -> LabelTable:
    """The table at ``path`` for files in ``images``; ``known`` are the network's classes.

    Labels that are numbers count the classes from 0. Names are looked up in ``known``; if none of them is there, the
    classes are the sorted names, as with class folders.

    Raises:
        ImageSetError: the table cannot be read or contradicts itself, some of its names are not in ``known`` though
            others are, or it numbers the classes in another order than ``known``.
    """
    rows = [_in_place(row, images) for row in _rows(path)]
    if not rows:
        raise ImageSetError(f"{path} lists no images: add lines with file,class_index")
    if all(_number(row.label) is not None for row in rows):
        return _by_number(rows, known)
    wrong = next((row for row in rows if _looks_like_a_number(row.label)), None)
    if wrong is not None:
        raise ImageSetError(
            f"{wrong.where} has class_index '{wrong.label}': write the number of the class, counted from 0, in every "
            "line, or its name in every line"
        )
    return _by_name(rows, known)


def has_labels(path: Path) -> bool:
    """Whether the table has a column of classes; not every ``metadata.csv`` does."""
    return bool(set(_CLASS) & set(_reader(path).fieldnames or ()))


def _by_number(rows: Sequence[_Row], known: Sequence[str] | None) -> LabelTable:
    classes: dict[int, str] = {}
    for row in rows:
        label = int(_number(row.label) or 0)
        if label >= MAX_CLASSES:
            raise ImageSetError(
                f"{row.where} has class_index '{row.label}': write the number of the class, counted from 0"
            )
        if classes.setdefault(label, row.name) != row.name:
            raise ImageSetError(
                f"{row.where} calls class {label} '{row.name}', an earlier line '{classes[label]}': use one name"
            )
        if known and row.name in known and label not in _places(row.name, known):
            raise ImageSetError(
                f"{row.where} calls class {label} '{row.name}', which is class {known.index(row.name)} of the "
                "network: number the classes in its order"
            )
    labels = _one_class_each(rows, [int(_number(row.label) or 0) for row in rows])
    if not any(classes.values()):
        return LabelTable(labels, None)
    return LabelTable(labels, tuple(classes.get(index) or str(index) for index in range(max(classes) + 1)))


def _by_name(rows: Sequence[_Row], known: Sequence[str] | None) -> LabelTable:
    own = sorted({row.label for row in rows})
    places = {name: _places(name, known or ()) for name in own}
    if not any(places.values()):
        # in the order of their names, as class folders; it is said where it is used
        return LabelTable(_one_class_each(rows, [own.index(row.label) for row in rows]), tuple(own), True)
    for row in rows:
        if len(places[row.label]) != 1:
            what = (
                "is not a class of the network" if not places[row.label] else "is the name of several classes"
            )
            raise ImageSetError(
                f"{row.where} has class_index '{row.label}', which {what}: write the number of the class, counted from "
                "0, or correct --classes"
            )
    return LabelTable(_one_class_each(rows, [places[row.label][0] for row in rows]), None)


def _one_class_each(rows: Sequence[_Row], labels: Sequence[int]) -> dict[str, int]:
    first: dict[str, tuple[int, str]] = {}
    for row, label in zip(rows, labels, strict=True):
        earlier = first.setdefault(row.file, (label, row.label))
        if earlier[0] != label:
            raise ImageSetError(
                f"{row.where} gives '{row.file}' class {row.label}, an earlier line {earlier[1]}: keep one of them"
            )
    return {file: label for file, (label, _) in first.items()}


def _number(label: str) -> int | None:
    """The integer in ``label``; ``6.0`` counts, because spreadsheets and data frames save integers so."""
    digits = label.removesuffix(".0")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 12 else None


def _looks_like_a_number(label: str) -> bool:
    try:
        float(label)
    except ValueError:
        return label.isnumeric()
    return True


def _places(name: str, known: Sequence[str]) -> list[int]:
    plain = unicodedata.normalize("NFC", name)
    return [index for index, other in enumerate(known) if unicodedata.normalize("NFC", other) == plain]


def _reader(path: Path) -> csv.DictReader[str]:
    """The rows of ``path``.

    Raises:
        ImageSetError: it is not a table in UTF-8, or cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        header = text.partition("\n")[0]
        separator = max(_SEPARATORS, key=header.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _not_a_table(path, error) from None
    except OSError as error:
        raise ImageSetError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    return reader


def _not_a_table(path: Path, error: Exception) -> ImageSetError:
    return ImageSetError(f"{path} is not a UTF-8 table of comma-separated values ({error}): save it as one")


def _rows(path: Path) -> Iterator[_Row]:
    reader = _reader(path)
    have = reader.fieldnames or ()
    file, label, name = (
        next((column for column in columns if column in have), None) for columns in (_FILE, _CLASS, _NAME)
    )
    missing = [columns[0] for column, columns in ((label, _CLASS), (file, _FILE)) if column is None]
    if file is None or label is None:
        raise ImageSetError(
            f"{path} lacks the column {' and '.join(missing)}: its first line must be file,class_index"
        )
    try:
        for row in reader:
            where = f"{path} line {reader.line_num}"
            cells = [(row.get(column) or "").strip() if column else "" for column in (file, label, name)]
            if not cells[0] or not cells[1]:
                raise ImageSetError(f"{where} is incomplete: give a file and its class_index")
            yield _Row(where, *cells)
    except csv.Error as error:
        raise _not_a_table(path, error) from None


def _in_place(row: _Row, images: Path) -> _Row:
    """``row`` with its file relative to ``images``."""
    name = row.file
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ImageSetError(f"{row.where} names '{name}': files must lie inside {images}")
    if not (images / name).is_file() and (images.parent / name).is_file() and name.startswith("images/"):
        name = name.removeprefix("images/")
    if not (images / name).is_file():
        raise ImageSetError(
            f"{row.where} names '{name}', which is not in {images}: add the file or remove the line"
        )
    return _Row(row.where, name, row.label, row.name)
