"""The names of a network's classes: the user's, or ImageNet's."""

from __future__ import annotations

import codecs
import json
from importlib import resources
from pathlib import Path

from rescompile.errors import UsageError, reason_of

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Some editors on Windows write these marks in front of a text."""


def imagenet_class_names() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet in their usual order."""
    text = resources.files("rescompile").joinpath("data/imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())


def read_class_names(given: Path | tuple[str, ...], count: int) -> tuple[str, ...]:
    """The ``count`` class names in a text file, or those that a program passes.

    Raises:
        UsageError: the file cannot be read, or there are more or fewer names.
    """
    names = read_names(given) if isinstance(given, Path) else given
    if len(names) != count:
        where, way = (
            (given, "write one name per line") if isinstance(given, Path) else ("class_names", "pass all")
        )
        raise UsageError(f"{where} names {len(names)} classes, the network has {count}; {way}")
    return names


def read_names(path: Path) -> tuple[str, ...]:
    """The names in a text file, one per line; empty lines do not count.

    A ``.json`` file may hold a list of names, the name of each number (``{"0": "cat"}``), or the number of each name
    (``{"cat": 0}``); ImageNet's pairs of identifier and name are names.

    Raises:
        UsageError: the file cannot be read, or its numbers are not 0, 1, 2 and so on.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in _UTF16 else "utf-8-sig")
        if path.suffix.lower() == ".json":
            return _names_in(json.loads(text), path)
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist; --classes takes a text file with one class name per line"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} cannot be read as text ({reason_of(error)}); --classes takes one class name per line"
        ) from None
    return names


def _names_in(value: object, path: Path) -> tuple[str, ...]:
    if isinstance(value, dict):
        by_number: dict[int | None, object] = {
            number: name for name, number in value.items() if type(number) is int
        } or {_number(key): name for key, name in value.items()}
        value = [by_number.get(index) for index in range(len(value))]
    names = [_name(name) for name in value] if isinstance(value, list) else [None]
    if None in names:
        raise UsageError(
            f"{path} is not a list of names, nor does it number them 0, 1, 2 and so on; --classes takes a text file "
            "with one class name per line, or JSON of one of these forms"
        )
    return tuple(filter(None, names))


def _number(key: str) -> int | None:
    return int(key) if key.isascii() and key.isdigit() and len(key) < 8 else None


def _name(value: object) -> str | None:
    """A name, or the last part of a pair such as ``["n01440764", "tench"]``; None for anything else."""
    if isinstance(value, list) and value:
        value = value[-1]
    return value.strip() or None if isinstance(value, str) else None
