"""Dataclasses as the text format of protocol buffers, which is what ``config.pbtxt`` is written in.

A field is written under its own name; None, an empty tuple and an empty dictionary are left out.

    str        a quoted string             Enum       its name, bare
    int, bool  as they are                 dataclass  a message in braces
    tuple      one entry for each item     dict       one message {key, value} for each item
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from enum import Enum
from typing import Any

_INDENT = "  "


def to_text(message: Any) -> str:
    """``message``, a dataclass, as text; ends in a newline.

    Raises:
        TypeError: a value is of another kind than those above.
    """
    return "".join(f"{line}\n" for line in _message(message))


def _message(message: Any) -> Iterator[str]:
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if value is not None:
            yield from _field(field.name, value)


def _field(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, tuple):
        for item in value:
            yield from _field(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _braces(name, [*_field("key", key), *_field("value", item)])
    elif dataclasses.is_dataclass(value):
        yield from _braces(name, list(_message(value)))
    else:
        yield f"{name}: {_scalar(value)}"


def _braces(name: str, lines: list[str]) -> Iterator[str]:
    yield f"{name} {{"
    yield from (_INDENT + line for line in lines)
    yield "}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, str):
        return f'"{_escaped(value)}"'
    if isinstance(value, int):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no text form here")


def _escaped(text: str) -> str:
    """UTF-8 with everything but plain ASCII as octal escapes, which need no agreement about encodings."""
    plain = {byte: chr(byte) for byte in range(0x20, 0x7F)} | {ord('"'): '\\"', ord("\\"): "\\\\"}
    return "".join(plain.get(byte, f"\\{byte:03o}") for byte in text.encode())
