"""From a photograph to the network's input: resize, centre crop, colour order, normalization.

The same object describes preprocessing in calibration tables and engine manifests, so that the two can be compared.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Pixels = Annotated[int, msgspec.Meta(ge=1, le=8192)]


class Preprocess(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a photograph becomes the engine's input; ``mean`` and ``std`` apply to values in [0, 1]."""

    resize: Pixels | None
    """Shorter side after resizing; None leaves the size as it is."""
    crop: Pixels
    """Side of the centre crop."""
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    color: Literal["RGB", "BGR"]


IMAGENET = Preprocess(
    resize=256,
    crop=224,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    color="RGB",
)
"""torchvision's evaluation preprocessing."""

CIFAR = Preprocess(
    resize=None,
    crop=32,
    interpolation="bilinear",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    color="RGB",
)
"""akamaster's CIFAR-10 preprocessing: ImageNet statistics, no resize."""
