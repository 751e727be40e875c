"""Counts the messages in a protobuf file before it is parsed: one takes two bytes of it, and hundreds of memory."""

from __future__ import annotations

from typing import Any

MOST_MESSAGES = 300_000
"""A ResNet-1202 has 22,000."""
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


def has_too_many_messages(data: bytes, descriptor: Any) -> bool:
    """Whether ``data``, a message of the type of ``descriptor``, holds more than ``MOST_MESSAGES``.

    What is not protobuf is left to the parser, which refuses it.
    """
    waiting, count = [(0, len(data), descriptor)], 0
    while waiting:
        place, end, kind = waiting.pop()
        try:
            while place < end:
                key, place = _varint(data, place)
                number, wire = key >> 3, key & 7
                if wire == _VARINT:
                    _, place = _varint(data, place)
                elif wire in (_FOUR_BYTES, _EIGHT_BYTES):
                    place += 4 if wire == _FOUR_BYTES else 8
                elif wire == _BYTES:
                    length, place = _varint(data, place)
                    field = kind.fields_by_number.get(number)
                    if field is not None and field.message_type is not None:
                        count += 1
                        waiting.append((place, min(place + length, end), field.message_type))
                    place += length
                if count > MOST_MESSAGES:
                    return True
        except IndexError:
            continue
    return False


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The number at ``place``, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80 or shift > 63:
            return value, place
        shift += 7
