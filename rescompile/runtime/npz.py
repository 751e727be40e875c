"""Arrays of an uncompressed ``.npz`` file that somebody else may have made: read strictly, within the file's own size.

``numpy.load`` takes any compression, type and shape, and memory for them before it looks; here float32 and uint8 in C
order are taken, stored as they are, which is what ``numpy.savez`` writes.
"""

from __future__ import annotations

import ast
import io
import math
import stat
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"\x93NUMPY"
_TYPES: dict[str, np.dtype[Any]] = {"<f4": np.dtype(np.float32), "|u1": np.dtype(np.uint8)}
_MOST_BYTES = 1 << 30


def read_arrays(path: Path, names: Sequence[str]) -> list[NDArray[Any]]:
    """The arrays ``names`` of ``path``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such archive; the reason is in the message.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no plain file; a symbolic link, perhaps")  # reading a pipe would wait forever
    if found.st_size > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            return [_array(_stored(archive, f"{name}.npy")) for name in names]
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is no ZIP archive, or damaged: {error}") from error


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    if name not in archive.namelist():
        raise ValueError(f"it has no {name}")
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed")
    return archive.read(entry)


def _array(content: bytes) -> NDArray[Any]:
    """The array in a ``.npy`` file."""
    if len(content) < 12 or not content.startswith(_MAGIC):
        raise ValueError("it holds something else than NumPy arrays")
    digits = 2 if content[6] == 1 else 4
    begin = 8 + digits + int.from_bytes(content[8 : 8 + digits], "little")
    dtype, shape = _header(content[8 + digits : begin])
    if math.prod(shape) * dtype.itemsize != len(content) - begin:
        raise ValueError("an array was cut")
    return np.frombuffer(content, dtype, offset=begin).reshape(shape).copy()


def _header(text: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    try:
        found = ast.literal_eval(text.decode("latin-1").strip()) if len(text) < 1000 else None
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.get("fortran_order") is not False:
        raise ValueError("the header of an array is damaged")
    kind, shape = found.get("descr"), found.get("shape")
    if not isinstance(kind, str) or kind not in _TYPES:
        raise ValueError("an array is neither float32 nor uint8")
    if (
        not isinstance(shape, tuple)
        or len(shape) > 32
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise ValueError("the header of an array is damaged")
    return _TYPES[kind], shape
