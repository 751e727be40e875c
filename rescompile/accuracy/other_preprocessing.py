"""Finds out on labelled images whether a network was trained with another normalization than the assumed one.

Weights do not say how their images were prepared. A wrong guess costs some or all of the accuracy while the engine
still agrees with its reference, which is fed in the same wrong way. So a few usual normalizations are tried beside the
assumed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.images import ImageSet
from calibration.preprocess import Preprocess, normalize
from rescompile.accuracy.parity import Network
from rescompile.metrics import binomial_tail

CHUNK = 16
"""Images after which a normalization that falls behind the assumed one is given up."""
BEHIND = 2
"""Answers by which a better normalization may be behind for a while, by chance."""
MOST = 256
"""Images on which the best one is decided."""
CHANCE = 0.01
"""Probability that a normalization which is not better seems so; over all that are tried."""

_PIXELS = (1 / 255,) * 3
USUAL: dict[str, dict[str, Any]] = {
    "ImageNet's mean and std": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "values from -1 to 1": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    "values from 0 to 1": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "pixels from 0 to 255": {"mean": (0.0, 0.0, 0.0), "std": _PIXELS},
    "Caffe's mean, BGR": {"mean": (0.4076, 0.45795, 0.48502), "std": _PIXELS, "color": "BGR"},
}
"""Normalizations that published networks were trained with, as changes of ``Preprocess``."""


@dataclass(frozen=True)
class BetterPreprocessing:
    """Another normalization with which the fp32 network does better, beyond chance."""

    name: str
    preprocess: Preprocess
    top1: float
    """Share of the images that are right with it."""
    top1_assumed: float
    images: int

    @property
    def options(self) -> str:
        """The options that ask for it."""
        mean, std = (
            ",".join(f"{value:.6g}" for value in values)
            for values in (self.preprocess.mean, self.preprocess.std)
        )
        return f"--mean {mean} --std {std} --color {self.preprocess.color}"


def better_preprocessing(
    reference: Network, images: ImageSet, assumed: Preprocess
) -> BetterPreprocessing | None:
    """The usual normalization that fits the labels of ``images`` better than ``assumed`` does; None where none is.

    One that falls behind ``assumed`` after any ``CHUNK`` images is given up, so that a right assumption costs little.
    """
    # who passes a mean image, or normalizes in the program, knows the preprocessing
    if images.labels is None or images.normalized or len(assumed.mean) != 3 or assumed.mean_image:
        return None
    rivals = _rivals(assumed)
    right: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in ("", *rivals)}
    done = 0
    for batch in images.batches(assumed, CHUNK):
        assert batch.labels is not None
        for name, parts in right.items():
            found = reference(_normalized(batch.images, assumed, rivals.get(name, assumed)))
            parts.append(found.argmax(1) == batch.labels)
        done += len(batch.labels)
        counts = {name: int(sum(part.sum() for part in parts)) for name, parts in right.items()}
        right = {name: parts for name, parts in right.items() if counts[name] + BEHIND >= counts[""]}
        if done >= MOST or len(right) == 1:
            break
    return _best(right, rivals, done)


def _rivals(assumed: Preprocess) -> dict[str, Preprocess]:
    swapped = "BGR" if assumed.color == "RGB" else "RGB"
    changes = {
        **USUAL,
        f"the same in {swapped}": {
            "mean": assumed.mean[::-1], "std": assumed.std[::-1], "color": swapped,
        },
    }  # fmt: skip
    rivals = {name: msgspec.structs.replace(assumed, **change) for name, change in changes.items()}
    return {name: rival for name, rival in rivals.items() if rival != assumed}


def _normalized(pixels: NDArray[Any], drawn: Preprocess, wanted: Preprocess) -> NDArray[np.float32]:
    """Network input as ``wanted`` from pixels in the colour order of ``drawn``."""
    return normalize(pixels if drawn.color == wanted.color else pixels[..., ::-1], wanted)


def _best(
    right: dict[str, list[NDArray[np.bool_]]], rivals: dict[str, Preprocess], done: int
) -> BetterPreprocessing | None:
    answers = {name: np.concatenate(parts) for name, parts in right.items()}
    own = answers.pop("")
    if not answers:
        return None
    name = max(answers, key=lambda rival: int(answers[rival].sum()))
    won, lost = int((answers[name] & ~own).sum()), int((own & ~answers[name]).sum())
    if binomial_tail(won, won + lost, 0.5) * len(rivals) > CHANCE:
        return None
    return BetterPreprocessing(name, rivals[name], float(answers[name].mean()), float(own.mean()), done)
