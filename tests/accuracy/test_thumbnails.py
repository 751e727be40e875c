"""Small copies of images have the right colours and sizes, whatever the network's channels are."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from rescompile.accuracy.thumbnails import SIDE, thumbnail


def shown(pixels, color) -> Image.Image:
    return Image.open(io.BytesIO(thumbnail(pixels, color))).convert("RGB")


@pytest.mark.parametrize(
    ("values", "color", "expected"),
    [
        ((250, 10, 20), "RGB", (250, 10, 20)),
        ((250, 10, 20), "BGR", (20, 10, 250)),
        ((90,), "GRAY", (90, 90, 90)),
        ((250, 10, 20, 255), "RGBA", (250, 10, 20)),
        ((0, 0, 0, 0), "RGBA", (255, 255, 255)),
    ],
)
def test_colours_are_those_of_the_photograph(values, color, expected) -> None:
    image = shown(np.broadcast_to(np.array(values, np.uint8), (8, 6, len(values))).copy(), color)
    assert image.size == (6, 8)
    assert image.getpixel((3, 4)) == pytest.approx(expected, abs=2)


def test_large_images_shrink_and_keep_their_ratio() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (224, 112, 3), dtype=np.uint8)
    assert shown(noise, "RGB").size == (SIDE // 2, SIDE)
    assert len(thumbnail(noise, "RGB")) < 6_000
