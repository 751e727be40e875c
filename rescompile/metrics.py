"""Distance of an engine's outputs from the reference's, one batch at a time. NumPy only.

    relative RMS = sqrt( sum (e - r)^2 / sum r^2 )            over all outputs of all images
    cosine       = mean over images of  <e, r> / (|e| |r|)
    SQNR         = 10 log10( sum r^2 / sum (o - r)^2 )  dB

Sums are float64, so the order of the images changes results by rounding only. Shares of images come with Wilson's 95 %
interval, and a difference of two shares with the probability that chance alone makes it (McNemar's exact test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from calibration.errors import ImageSetError
from rescompile.errors import BackendError, CheckpointError
from rescompile.manifest import OutputKind
from rescompile.report import Parity

MOST_CHANGES = 100
"""Images with another answer that are kept."""
Logits = NDArray[np.floating]
Labels = NDArray[np.integer]

_TWO_SIDED_95 = 1.959964
"""Standard deviations of the normal distribution that hold 95 %."""


ONE_CLASS: tuple[OutputKind, ...] = ("classes", "binary")
"""Kinds of output that name one class for each image, so that labels can be compared with it."""


def class_of(outputs: Logits, kind: OutputKind) -> Labels:
    """The class of each image [N]: that of the largest logit, or for a binary output 1 where its logit is positive."""
    return (outputs[:, 0] > 0).astype(np.int64) if kind == "binary" else outputs.argmax(axis=1)


def margins(
    reference: Logits, engine: Logits, chosen: Labels, others: Labels
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """How much each side prefers its own class to that of the other side, for each image [N]; 0 where they agree.

    A binary output has one logit, whose distance from 0 decides.
    """
    if reference.shape[1] == 1:
        differ = chosen != others
        return np.abs(reference[:, 0]) * differ, np.abs(engine[:, 0]) * differ
    rows = np.arange(len(reference))
    return (
        reference[rows, chosen] - reference[rows, others],
        engine[rows, others] - engine[rows, chosen],
    )


@dataclass(frozen=True, eq=False)
class Answers:
    """The classes that both sides name for each image [N], and its label, if the images have labels.

    All are empty where the outputs name no class.
    """

    reference: Labels
    engine: Labels
    labels: Labels | None


@dataclass(frozen=True)
class Change:
    """An image (counted from 0) whose classes differ between the two sides, and the classes that each gives it."""

    image: int
    reference: tuple[int, ...]
    engine: tuple[int, ...]
    reference_margin: float | None = None
    """By how much the reference prefers its class to the engine's, in logits; None for several labels."""
    engine_margin: float | None = None


class ParityMeter:
    """Accumulates the comparison of two sets of outputs [N, ...] of one kind over the batches of one image set."""

    def __init__(self, kind: OutputKind = "classes") -> None:
        self._kind = kind
        self._labelled: bool | None = None
        self._images = self._decisions = self._agreeing = 0
        self._reference_energy = self._error_energy = self._cosine = self._max_abs = 0.0
        self._worst_cosine = 1.0
        self._answers: list[tuple[Labels, Labels]] = []
        self._labels: list[Labels] = []
        self._energies: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self.changes: list[Change] = []
        """The first ``MOST_CHANGES`` images whose classes differ."""

    def update(self, reference: Logits, engine: Logits, labels: Labels | None = None) -> None:
        """Add one batch: outputs [N, ...] of both sides and, where the set has them, class indices [N].

        Raises:
            BackendError: the engine's outputs have another shape than the reference's, or are not finite.
            CheckpointError: the reference's outputs are not finite.
            ImageSetError: a label is not a class of the network.
        """
        if (
            reference.ndim not in ((2, 4) if self._kind == "features" else (2,))
            or reference.shape != engine.shape
        ):
            raise BackendError(
                f"the engine returned {self._word} of shape {list(engine.shape)}, the reference "
                f"{list(reference.shape)}, both must be [images, classes]: compare an engine with the network "
                "that it was built from"
            )
        r, e = (side.astype(np.float64).reshape(len(side), -1) for side in (reference, engine))
        self._refuse_non_finite(r, e)
        self._decide(r, e, labels)
        error, cosines = e - r, _cosines(r, e)
        self._images += len(r)
        energies = np.square(r).sum(axis=1), np.square(error).sum(axis=1)
        self._energies.append(energies)
        self._reference_energy += float(energies[0].sum())
        self._error_energy += float(energies[1].sum())
        self._cosine += float(cosines.sum())
        self._worst_cosine = min(self._worst_cosine, float(cosines.min(initial=1.0)))
        self._max_abs = max(self._max_abs, float(np.abs(error).max(initial=0.0)))

    def result(
        self, *, image_source: str, image_fingerprint: str, image_set_size: int | None = None
    ) -> Parity:
        """The comparison so far; ``relative_rms`` is infinite if the reference is all zero and the engine is not.

        Raises:
            ImageSetError: no image was compared.
        """
        if not self._images:
            raise ImageSetError(f"{image_source} has no images, so nothing was compared: pass a set that has")
        count, answers = self._images, self.answers()
        right = (
            [] if answers.labels is None
            else [int((side == answers.labels).sum()) for side in (answers.reference, answers.engine)]
        )  # fmt: skip
        top1: list[float | None] = [correct / count for correct in right] or [None, None]
        decided = self._kind not in ("values", "features")
        return Parity(
            images=count,
            image_set_size=image_set_size,
            image_source=image_source,
            image_fingerprint=image_fingerprint,
            top1_reference=top1[0],
            top1_engine=top1[1],
            top1_agreement=(self._agreeing / self._decisions if self._decisions else 1.0)
            if decided
            else None,
            top1_intervals=tuple(wilson(correct, count) for correct in right),
            agreement_interval=wilson(self._agreeing, self._decisions) if self._decisions else None,
            top1_drop_p=self._drop_p() if right else None,
            relative_rms=_relative_rms(self._reference_energy, self._error_energy),
            cosine=self._cosine / self._images,
            worst_cosine=self._worst_cosine,
            max_abs=self._max_abs,
            task=self._kind,
        )

    def answers(self) -> Answers:
        """The classes that both sides gave so far."""
        none = np.zeros(0, np.int64)
        reference, engine = (
            np.concatenate([none, *side]) for side in zip((none, none), *self._answers, strict=True)
        )
        return Answers(reference, engine, np.concatenate(self._labels) if self._labels else None)

    def energies(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Squared norms [N] of the reference's outputs and of the error, image by image."""
        reference, error = (np.concatenate(side) for side in zip(*self._energies, strict=True))
        return reference, error

    @property
    def _word(self) -> str:
        return "outputs" if self._kind in ("values", "features") else "logits"

    def _drop_p(self) -> float:
        """Probability that two equally good networks differ in as many right answers (McNemar, exact, two-sided)."""
        answers = self.answers()
        assert answers.labels is not None
        right, left = answers.reference == answers.labels, answers.engine == answers.labels
        won, lost = int((right & ~left).sum()), int((left & ~right).sum())
        return min(1.0, 2 * binomial_tail(max(won, lost), won + lost, 0.5))

    def _refuse_non_finite(self, reference: Logits, engine: Logits) -> None:
        # argmax returns the position of a NaN on both sides, which would look like agreement
        if (row := _first_non_finite(reference)) is not None:
            raise CheckpointError(
                f"the fp32 reference returned NaN or infinite {self._word} for image {self._images + row} (counted "
                "from 0): its weights are unusable, take another checkpoint"
            )
        if (row := _first_non_finite(engine)) is not None:
            raise BackendError(
                f"the engine returned NaN or infinite {self._word} for image {self._images + row} (counted from 0), "
                "the fp32 reference finite ones: do not use this engine; fp16 overflows above 65504, so try "
                "--precision fp32"
            )

    def _decide(self, reference: Logits, engine: Logits, labels: Labels | None) -> None:
        """Count the decisions of both sides, of those kinds of output that decide."""
        if self._kind == "multilabel":
            # of the labels that one side gives: the many that neither gives would hide every difference
            self._decisions += int(((reference > 0) | (engine > 0)).sum())
            self._agreeing += int(((reference > 0) & (engine > 0)).sum())
            self._keep_changes(
                [[tuple(np.flatnonzero(row > 0).tolist()) for row in side] for side in (reference, engine)]
            )
        elif self._kind in ONE_CLASS:
            chosen = class_of(reference, self._kind), class_of(engine, self._kind)
            self._keep_labels(labels, len(reference), 2 if self._kind == "binary" else reference.shape[1])
            self._answers.append(chosen)
            self._decisions += len(reference)
            self._agreeing += int((chosen[0] == chosen[1]).sum())
            self._keep_changes(
                [[(index,) for index in side.tolist()] for side in chosen],
                margins(reference, engine, *chosen),
            )

    def _keep_changes(
        self,
        given: Sequence[Sequence[tuple[int, ...]]],
        margins: tuple[NDArray[np.floating], NDArray[np.floating]] | None = None,
    ) -> None:
        for row, (reference, engine) in enumerate(zip(*given, strict=True)):
            if reference != engine and len(self.changes) < MOST_CHANGES:
                both = (None, None) if margins is None else (float(margins[0][row]), float(margins[1][row]))
                self.changes.append(Change(self._images + row, reference, engine, *both))

    def _keep_labels(self, labels: Labels | None, count: int, classes: int) -> None:
        labelled = labels is not None
        if self._labelled is not None and labelled != self._labelled:
            raise ValueError("either every batch carries labels or none does")
        self._labelled = labelled
        if labels is None:
            return
        if labels.shape != (count,):
            raise ValueError(f"labels of shape {labels.shape} for {count} images")
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        if wrong.size:
            raise ImageSetError(
                f"image {self._images + wrong[0]} (counted from 0) has label {labels[wrong[0]]}, but the network "
                f"has classes 0 to {classes - 1}: correct the label, or pass the image set that belongs to this "
                "network"
            )
        self._labels.append(labels)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share by Wilson's score, for 1 trial or more."""
    share, weight = successes / trials, _TWO_SIDED_95**2 / trials
    centre = share + weight / 2
    reach = _TWO_SIDED_95 * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    # rounding must not push an end beyond the share itself
    low, high = (centre - reach) / (1 + weight), (centre + reach) / (1 + weight)
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Probability of ``successes`` or more in ``trials``, each of ``probability`` (above 0, below 1)."""
    if successes <= 0:
        return 1.0
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    counts = np.arange(successes, trials + 1)
    ways = logs[trials] - logs[counts] - logs[trials - counts]
    terms = ways + counts * math.log(probability) + (trials - counts) * math.log1p(-probability)
    return min(1.0, float(np.exp(terms).sum()))


def relative_rms(reference: Logits, other: Logits) -> float:
    """RMS of the difference over RMS of ``reference``, for finite arrays of one shape.

    0 if both are equal, infinite if only ``reference`` is all zero.
    """
    r, o = reference.astype(np.float64), other.astype(np.float64)
    return _relative_rms(float(np.square(r).sum()), float(np.square(o - r).sum()))


def decibels(signal: float, noise: float) -> float:
    """10 log10 of the ratio of two energies: infinite without noise, minus infinite if there is only noise."""
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def _relative_rms(reference_energy: float, error_energy: float) -> float:
    if error_energy == 0.0:
        return 0.0
    return math.sqrt(error_energy / reference_energy) if reference_energy > 0.0 else math.inf


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of each row [N]; 1 for two zero rows, 0 for a zero row and another one."""
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    norms = norm_a * norm_b
    cosines = np.where((norm_a == 0) & (norm_b == 0), 1.0, 0.0)
    np.divide((a * b).sum(axis=1), norms, out=cosines, where=norms > 0)
    return np.clip(cosines, -1.0, 1.0)


def _first_non_finite(logits: Logits) -> int | None:
    rows = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    return int(rows[0]) if rows.size else None
