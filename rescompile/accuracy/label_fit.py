"""Whether labels and network fit each other: an engine that agrees with a wrongly fed network proves nothing.

Three things are asked of the fp32 network's answers. Are they better than chance? Is one class the answer to
everything? And would other labels fit far better: labels that count from 1, or classes in another order? The mapping of
classes is learned on half of the images and tried on the other half, so that it cannot fit by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rescompile.metrics import Answers, Labels, binomial_tail, wilson
from rescompile.wording import percent

FEWEST = 10
"""Fewer images prove nothing about labels."""
CHANCE = 1e-4
"""Probability with which labels that fit are taken for labels that do not."""
FEW_CLASSES = 4
"""With so few, twice the share of a guess is more than a useful network may have."""
CONSTANT_SHARE = 0.95
"""Share of images with one answer from which on the network answers nothing else."""
ADVICE = (
    "check the preprocessing (--mean, --std, --color, --resize, --crop), the order of the classes (--classes) and that "
    "this is the right checkpoint"
)


def misfit(answers: Answers, class_names: Sequence[str]) -> str | None:
    """What is wrong between the network and the labels, in one sentence; None where they fit or nothing can be said."""
    labels, found, classes = answers.labels, answers.reference, len(class_names)
    if labels is None or len(labels) < FEWEST or classes < 2:
        return None
    right = found == labels
    better = [*_shifted(found, labels), *_reordered(found, labels, class_names)]
    if not better and not _at_chance(int(right.sum()), len(labels), classes):
        return None
    seen = max(better)[1] if better else _constant(found, labels, class_names)
    share = f"the fp32 network names the right class for {percent(right.mean())} of {len(right)} images"
    return f"{share}{f'; {seen}' if seen else ', which is chance'}: {ADVICE}"


def _at_chance(right: int, count: int, classes: int) -> bool:
    """Below twice the share of a guess, or not to be told from one; among few classes, surely below 1.5 times."""
    share, guess = right / count, 1 / classes
    if classes <= FEW_CLASSES:
        return wilson(right, count)[1] < 1.5 * guess
    return share < 2 * guess or (share < 3 * guess and binomial_tail(right, count, guess) > 0.01)


Better = tuple[int, str]
"""How many images would be right with other labels, and what these are."""


def _shifted(found: Labels, labels: Labels) -> list[Better]:
    """Labels that count from another number than the network's classes do."""
    better = []
    for step, words in ((1, "from 1 instead of 0"), (-1, "from -1, or the network has a class in front")):
        moved = found == labels - step
        if _fits_better(moved, found == labels):
            sentence = f"the labels seem to count {words}: {percent(moved.mean())} would be right"
            better.append((int(moved.sum()), sentence))
    return better


def _reordered(found: Labels, labels: Labels, class_names: Sequence[str]) -> list[Better]:
    """Classes that stand in another order: what the network calls one class, the labels call another."""
    half = np.arange(len(found)) % 2 == 0
    mapped = np.full(len(found), -1)
    for learned, tried in ((half, ~half), (~half, half)):
        names = _mapping(found[learned], labels[learned], len(class_names))
        mapped[tried] = names[found[tried]]
    moved = mapped == labels
    if not _fits_better(moved, found == labels):
        return []
    names = _mapping(found, labels, len(class_names))
    others = [index for index in np.unique(found) if names[index] not in {-1, index}]
    examples = ", ".join(
        f"{class_names[index]} is labelled {class_names[names[index]]}" for index in others[:3]
    )
    share = percent(moved.mean())
    return [
        (
            int(moved.sum()),
            f"its classes seem to be in another order, in which {share} would be right ({examples})",
        )
    ]


def _mapping(found: Labels, labels: Labels, classes: int) -> NDArray[np.int64]:
    """The most frequent label [classes] of the images that the network puts into each class; -1 where it names none."""
    names = np.full(classes, -1)
    for index in np.unique(found):
        values, counts = np.unique(labels[found == index], return_counts=True)
        names[index] = values[counts.argmax()]
    return names


def _fits_better(other: NDArray[np.bool_], own: NDArray[np.bool_]) -> bool:
    """Whether the ``other`` answers are right more often, beyond chance and for a twentieth of all images."""
    won, lost = int((other & ~own).sum()), int((own & ~other).sum())
    return won - lost > 0.05 * len(own) and binomial_tail(won, won + lost, 0.5) < CHANCE


def _constant(found: Labels, labels: Labels, class_names: Sequence[str]) -> str | None:
    values, counts = np.unique(found, return_counts=True)
    most = int(counts.argmax())
    if counts[most] < CONSTANT_SHARE * len(found) or len(np.unique(labels)) == 1:
        return None
    return f"it names {class_names[values[most]]} for {counts[most]} of {len(found)} images"
