"""Float images that a program normalized itself: whether they lie within what exact pixels can hold.

The quantizer of exact pixels (``graph.pixels``) holds what the network's preprocessing makes of bytes. Other values, as
of a program that normalizes otherwise, would be clipped there.
"""

from __future__ import annotations

import numpy as np

from calibration.images import ImageSet
from calibration.preprocess import Preprocess

_BATCH = 64


def words_beyond_pixels(images: ImageSet, preprocess: Preprocess) -> str | None:
    """Both ranges and advice, where a float of ``images`` is half a step beyond what pixels become; None elsewhere."""
    if not images.normalized or preprocess.mean_image:
        return None
    ends = [
        (batch.images.min(axis=(0, 1, 2)), batch.images.max(axis=(0, 1, 2)))
        for batch in images.batches(preprocess, _BATCH)
    ]
    low, high = (np.array(end) for end in zip(*ends, strict=True))
    low, high = low.min(axis=0), high.max(axis=0)
    mean, std = np.array(preprocess.mean), np.array(preprocess.std)
    least, most = -mean / std, (1 - mean) / std
    beyond = np.maximum(least - low, high - most) * std * 255
    worst = int(beyond.argmax())
    if beyond[worst] <= 0.5:
        return None
    return (
        f"the float values of {images.source} go from {low[worst]:.3g} to {high[worst]:.3g} in channel {worst}, those "
        f"that the network's preprocessing makes of pixels from {least[worst]:.3g} to {most[worst]:.3g} (mean "
        f"{list(preprocess.mean)}, std {list(preprocess.std)}); pass the preprocessing that made them, or uint8 pixels"
    )
