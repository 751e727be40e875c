"""An engine against the fp32 reference: measure on an image set, then judge what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.base import Progress
from rescompile.errors import UsageError
from rescompile.manifest import Precision
from rescompile.metrics import Labels, Logits, ParityMeter
from rescompile.report import Check, Limits, Parity
from rescompile.wording import percent, points

Network = Callable[[NDArray[Any]], Logits]
"""Images [N, ...] to logits [N, classes]."""

SAMPLE_SIZE = 2000
"""Most pairs of logits that are kept for the plot."""

_SLACK = 1e-9
"""In percentage points: (0.9339 - 0.9319) * 100 is 0.2 only up to rounding, and 0.2 was asked."""


class ImageBatch(NamedTuple):
    """One batch as each side wants it; the two are the same images."""

    reference: NDArray[np.float32]
    """[N, 3, H, W], preprocessed."""
    candidate: NDArray[Any]
    """[N, ...] in the engine's own layout and dtype."""
    labels: Labels | None
    """Class indices [N], for every batch or for none."""


@dataclass(frozen=True)
class Measurement:
    """The comparison, and at most ``SAMPLE_SIZE`` pairs (fp32, engine) of logits, drawn evenly from all."""

    parity: Parity
    logits: tuple[tuple[float, float], ...]


def measure_parity(
    reference: Network,
    candidate: Network,
    batches: Iterable[tuple[NDArray[np.float32], NDArray[Any], Labels | None]],
    *,
    image_source: str,
    image_fingerprint: str,
    total: int = 0,
    progress: Progress | None = None,
) -> Measurement:
    """Run both networks over ``batches`` (see ``ImageBatch``) and compare their logits.

    ``total`` is the number of images, for ``progress`` only. The sample of logits is seeded and does not
    depend on the size of the batches.

    Raises:
        BackendError: the candidate's logits are not finite or of another shape than the reference's.
        CheckpointError: the reference's logits are not finite.
        ImageSetError: there are no images, or a label names no class of the network.
    """
    meter, sample, done = ParityMeter(), _PairSample(SAMPLE_SIZE), 0
    for reference_images, candidate_images, labels in batches:
        expected, found = reference(reference_images), candidate(candidate_images)
        meter.update(expected, found, labels)
        sample.update(expected, found)
        done += len(expected)
        if progress is not None:
            progress(done, total)
    parity = meter.result(image_source=image_source, image_fingerprint=image_fingerprint)
    return Measurement(parity, sample.pairs())


def judge(parity: Parity, limits: Limits) -> tuple[Check, ...]:
    """What was asked beside what was measured, one line each; the first, finite logits, is always asked.

    Raises:
        UsageError: a top-1 drop was asked of images without labels.
    """
    # measure_parity refuses logits that are not finite, so there is no Parity of such
    checks = [Check("finite logits", "all", f"all of {parity.images} images", passed=True)]
    if (asked := limits.min_agreement) is not None:
        share = parity.top1_agreement
        checks.append(Check("agreement", f"at least {percent(asked)}", percent(share), share >= asked))
    if (asked := limits.max_top1_drop) is not None:
        drop = _top1_drop(parity)
        checks.append(Check("top-1 drop", f"at most {points(asked)}", points(drop), drop <= asked + _SLACK))
    if (asked := limits.max_relative_rms) is not None:
        rms = parity.relative_rms
        checks.append(Check("relative RMS", f"at most {asked:.5g}", f"{rms:.5g}", rms <= asked))
    return tuple(checks)


def default_limits(precision: Precision, *, random_weights: bool) -> Limits:
    """What is asked when the user asks nothing.

    Nothing but finite logits is asked of random weights: such a network's logits lie so close together that
    rounding alone reorders them, so neither agreement nor a relative error tells a good engine from a bad one.
    """
    if random_weights:
        return Limits()
    agreement, relative_rms = {"fp32": (0.995, 1e-3), "fp16": (0.99, 0.02), "int8": (0.90, 0.15)}[precision]
    return Limits(min_agreement=agreement, max_relative_rms=relative_rms)


def _top1_drop(parity: Parity) -> float:
    """Loss of top-1 accuracy in percentage points; negative where the engine is better."""
    if parity.top1_reference is None or parity.top1_engine is None:
        raise UsageError(
            f"a largest top-1 drop was asked, but the images of {parity.image_source} have no labels: "
            "pass a labelled set (one folder per class, or labels.csv), or ask for --min-agreement instead"
        )
    return 100 * (parity.top1_reference - parity.top1_engine)


class _PairSample:
    """Draws pairs evenly from a stream: each gets a random key, the smallest keys stay."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._random = np.random.default_rng(0)
        self._keys = np.empty(0)
        self._pairs = np.empty((0, 2), np.float32)

    def update(self, reference: Logits, engine: Logits) -> None:
        fresh = np.stack([reference.ravel(), engine.ravel()], axis=1).astype(np.float32)
        keys = np.concatenate([self._keys, self._random.random(len(fresh))])
        kept = np.argsort(keys, kind="stable")[: self._capacity]
        self._keys, self._pairs = keys[kept], np.concatenate([self._pairs, fresh])[kept]

    def pairs(self) -> tuple[tuple[float, float], ...]:
        return tuple((float(reference), float(engine)) for reference, engine in self._pairs)
