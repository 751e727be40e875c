"""Small image sets on disk."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 40


def picture(seed: int) -> NDArray[np.uint8]:
    """Noise [SIDE, SIDE, 3], another one for every seed."""
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed)).save(path)


def flat(folder: Path, count: int = 6) -> Path:
    for index in range(count):
        save(folder / f"{index:02d}.png", index)
    return folder


def with_csv(folder: Path, text: str | bytes) -> Path:
    """``images/`` with 00.png to 02.png beside a ``labels.csv`` of ``text``."""
    flat(folder / "images", 3)
    (folder / "labels.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims to be of this size."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (body, data)
    )
