"""Reads an untrusted ``.npz`` file; memory is bounded by the size of the file.

``numpy.load`` accepts any compression, type and shape, and allocates memory before it checks them. This reader accepts
what ``numpy.savez`` writes: float32 and uint8 in C order, not compressed.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Sequence
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

_TYPES = (np.dtype("<f4"), np.dtype("u1"))
_HEADERS = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}
_MOST_HEADER_BYTES = 1000
_MOST_BYTES = 1 << 30


def read_arrays(content: bytes, names: Sequence[str]) -> list[NDArray[Any]]:
    """The arrays ``names`` of an ``.npz`` file with this ``content``.

    Raises:
        ValueError: it is not such an archive; the message says why not.
    """
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [_array(_stored(archive, f"{name}.npy")) for name in names]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is not a ZIP archive, or it is damaged: {error}") from error


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    if name not in archive.namelist():
        raise ValueError(f"it has no {name}")
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed")
    return archive.read(entry)


def _array(content: bytes) -> NDArray[Any]:
    """The array in a ``.npy`` file."""
    stream = io.BytesIO(content)
    try:
        read_header = _HEADERS[read_magic(stream)]
    except (ValueError, KeyError) as error:
        raise ValueError("it holds something else than NumPy arrays") from error
    try:
        shape, fortran_order, dtype = read_header(stream, max_header_size=_MOST_HEADER_BYTES)
    except (ValueError, TypeError, SyntaxError, TokenError, MemoryError, RecursionError) as error:
        raise ValueError("the header of an array is damaged") from error
    if fortran_order or len(shape) > 32 or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("the header of an array is damaged")
    if dtype not in _TYPES:
        raise ValueError("an array is neither float32 nor uint8")
    begin = stream.tell()
    if math.prod(shape) * dtype.itemsize != len(content) - begin:
        raise ValueError("an array was cut")
    return np.frombuffer(content, dtype, offset=begin).reshape(shape).copy()
