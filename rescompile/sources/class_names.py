"""The names of a network's classes: the user's, or ImageNet's."""

from __future__ import annotations

import codecs
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

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-16" if data[:2] in _UTF16 else "utf-8-sig")
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist; --classes takes a text file with one class name per line"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read as text ({reason_of(error)}); --classes takes one class name per line"
        ) from None
    return names
