"""``labels.csv`` beside ``images/``: the class of each file, and optionally the name of each class."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from calibration.errors import ImageSetError

MAX_CLASSES = 1_000_000
"""A larger class index is a mistake in the file."""
_SEPARATORS = ",;\t"
"""Spreadsheets of many countries write semicolons."""


def read_labels(
    path: Path, images: Path, known: Sequence[str] | None
) -> tuple[dict[str, int], tuple[str, ...] | None]:
    """Class of every file in ``images``, and the names of the classes where the table has them.

    Raises:
        ImageSetError: the table cannot be read, contradicts itself, or numbers classes in another order than ``known``.
    """
    rows: dict[str, int] = {}
    classes: dict[int, str] = {}
    for where, row in _rows(path):
        name, label = _checked(row, where, images, known or ())
        if rows.setdefault(name, label) != label:
            raise ImageSetError(
                f"{where} gives '{name}' class {label}, an earlier line {rows[name]}: keep one of them"
            )
        called = (row.get("name") or "").strip()
        if classes.setdefault(label, called) != called:
            raise ImageSetError(
                f"{where} calls class {label} '{called}', an earlier line '{classes[label]}': use one name"
            )
        if known and called in known and label not in _places(called, known):
            raise ImageSetError(
                f"{where} calls class {label} '{called}', which is class {known.index(called)} of the network: "
                "number the classes in its order"
            )
    if not rows:
        raise ImageSetError(f"{path} lists no images: add lines with file,class_index")
    if not any(classes.values()):
        return rows, None
    return rows, tuple(classes.get(index) or str(index) for index in range(max(classes) + 1))


def _places(name: str, known: Sequence[str]) -> list[int]:
    return [index for index, other in enumerate(known) if other == name]


def _rows(path: Path) -> list[tuple[str, dict[str, str | None]]]:
    """Place (file and line) and content of every row of ``path``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        header = text.partition("\n")[0]
        separator = max(_SEPARATORS, key=header.count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        missing = {"file", "class_index"} - set(reader.fieldnames)
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


def _checked(row: dict[str, str | None], where: str, images: Path, known: Sequence[str]) -> tuple[str, int]:
    name, index = (row["file"] or "").strip(), row["class_index"]
    if not name or index is None:
        raise ImageSetError(f"{where} is incomplete: give a file and its class_index")
    digits = index.strip()
    if not digits.isdigit() and len(places := _places(digits, known)) == 1:
        digits = str(places[0])
    label = int(digits) if digits.isascii() and digits.isdigit() and len(index) < 12 else MAX_CLASSES
    if label >= MAX_CLASSES:
        raise ImageSetError(
            f"{where} has class_index '{index}': write the number of the class, counted from 0"
        )
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ImageSetError(f"{where} names '{name}': files must lie inside {images}")
    if not (images / name).is_file() and (images.parent / name).is_file() and name.startswith("images/"):
        name = name.removeprefix("images/")
    if not (images / name).is_file():
        raise ImageSetError(
            f"{where} names '{name}', which is not in {images}: add the file or remove the line"
        )
    return name, label
