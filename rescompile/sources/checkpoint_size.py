"""Limits on what a checkpoint becomes in memory, by the size of its file.

A small file can name large things: a tensor of stride 0 that repeats one value, a list that holds another a hundred
times, a record packed a thousand to one. A payload larger than a real checkpoint of that file size can be is refused
before it is copied.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import torch

_MOST_OBJECTS = 1_000_000
_MOST_MEMOIZED = 1 << 20
_SLACK = 50_000_000


def bytes_allowed(size: int) -> int:
    """Bytes that all tensors of a file of ``size`` bytes may have together: half-precision copies count twice."""
    return 2 * size + _SLACK


def refuse_inflated(payload: object, size: int) -> None:
    """Raise ValueError where ``payload``, from a file of ``size`` bytes, is larger than that file can be."""
    total = 0
    for tensor in _tensors(payload):
        total += tensor.nbytes
        if total > bytes_allowed(size):
            raise ValueError(f"its tensors unpack to far more than its {size:,} bytes")


def refuse_large_memo(file: BinaryIO) -> None:
    """Raise ValueError where the pickle that ``file`` begins with numbers its objects so that a table of them is huge.

    The position in ``file`` is put back.
    """
    start = file.tell()
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in {"PUT", "LONG_BINPUT"} and int(argument or 0) > _MOST_MEMOIZED:
            raise ValueError(f"it gives an object the number {argument}")
    file.seek(start)


def _tensors(payload: object) -> Iterator[torch.Tensor | np.ndarray[Any, Any]]:
    """Every tensor and array, as often as it is reached; raises ValueError for too many objects."""
    left, seen = [payload], 0
    while left:
        seen += 1
        if seen > _MOST_OBJECTS:
            raise ValueError(f"it holds more than {_MOST_OBJECTS:,} objects")
        value = left.pop()
        if isinstance(value, (torch.Tensor, np.ndarray)):
            yield value
        elif isinstance(value, dict):
            left.extend(dict.values(value))
        elif isinstance(value, (list, tuple, set, frozenset)):
            left.extend(value)
