"""Small copies of images for a report: what the network saw, as PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibration.preprocess import Color

MOST_THUMBNAILS = 24
"""Images of a report that are shown."""
SIDE = 72
"""Largest side in pixels; smaller images keep their size."""
_COLOURS = 64
"""A palette makes a photograph's PNG about 3 kB."""


def thumbnail(pixels: NDArray[np.uint8], color: Color) -> bytes:
    """The image ``pixels`` [H, W, C] in channel order ``color``, at most ``SIDE`` pixels wide and high.

    Transparent pixels are shown over white.
    """
    if color == "BGR":
        pixels = np.ascontiguousarray(pixels[..., ::-1])
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image.thumbnail((SIDE, SIDE))
    if image.mode == "RGB":
        image = image.quantize(_COLOURS)
    stream = io.BytesIO()
    image.save(stream, "png", optimize=True)
    return stream.getvalue()
