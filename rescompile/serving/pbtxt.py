"""Dictionaries as the text format of protocol buffers, in which ``config.pbtxt`` is written.

dict       a message in braces             str        a quoted string
list       one entry for each item         Name       bare, for values of an enumeration
None       left out                        int, bool  as they are
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_INDENT = "  "


class Name(str):
    """The name of an enumeration's value."""

    __slots__ = ()


def map_entries(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A protocol buffer's map: one message {key, value} for each item."""
    return [{"key": key, "value": value} for key, value in values.items()]


def to_text(message: Mapping[str, Any]) -> str:
    """``message`` as text; ends in a newline.

    Raises:
        TypeError: a value is of another kind than those above.
    """
    return "".join(f"{line}\n" for line in _message(message))


def _message(message: Mapping[str, Any]) -> Iterator[str]:
    for name, value in message.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                yield f"{name} {{"
                yield from (_INDENT + line for line in _message(item))
                yield "}"
            elif item is not None:
                yield f"{name}: {_scalar(item)}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (Name, int)):
        return str(value)
    if isinstance(value, str):
        return f'"{_escaped(value)}"'
    raise TypeError(f"{type(value).__name__} has no text form here")


def _escaped(text: str) -> str:
    """UTF-8 with all but plain ASCII as octal escapes, which do not depend on an encoding."""
    plain = {byte: chr(byte) for byte in range(0x20, 0x7F)} | {ord('"'): '\\"', ord("\\"): "\\\\"}
    return "".join(plain.get(byte, f"\\{byte:03o}") for byte in text.encode())
