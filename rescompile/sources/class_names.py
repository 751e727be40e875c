"""The names of a network's classes: the user's, or ImageNet's."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from rescompile.errors import UsageError, reason_of


def imagenet_class_names() -> tuple[str, ...]:
    """The 1,000 classes of ImageNet in their usual order."""
    text = resources.files("rescompile").joinpath("data/imagenet_classes.txt").read_text("utf-8")
    return tuple(text.splitlines())


def read_class_names(path: Path, count: int) -> tuple[str, ...]:
    """The ``count`` class names in a text file, one per line; empty lines do not count.

    Raises:
        UsageError: the file cannot be read, or has more or fewer names.
    """
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist; --classes takes a text file with one class name per line"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read as text ({reason_of(error)}); --classes takes one class name per line"
        ) from None
    if len(names) != count:
        raise UsageError(
            f"{path} names {len(names)} classes, the network has {count}; write one name per line"
        )
    return names
