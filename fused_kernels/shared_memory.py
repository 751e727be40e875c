"""How much shared memory a program may use."""

from __future__ import annotations

LIMITS = {
    80: 166_912,
    86: 101_376,
    87: 166_912,
    89: 101_376,
    90: 232_448,
    100: 232_448,
    103: 232_448,
    120: 101_376,
}


def limit_of(capability: int) -> int:
    return LIMITS[capability]
