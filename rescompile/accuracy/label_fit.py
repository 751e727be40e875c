"""Whether labels and network fit each other: an engine that agrees with a wrongly fed network proves nothing.

Three things are asked of the fp32 network's answers. Are they better than those of a network that does not look at the
images? Would other labels fit far better: labels that count from 1, or classes in another order? And are some classes
exchanged? Orders that people get by accident are tried on all images, so that one image of each class is enough. Any
other order is learned on half of the images and tried on the other half, so that it cannot fit by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rescompile.metrics import Answers, Labels, binomial_tail
from rescompile.wording import percent

FEWEST = 10
"""Fewer images prove nothing about labels."""
CHANCE = 1e-4
"""Probability with which labels that fit are taken for labels that do not."""
SURE = 4.0
"""Standard deviations above a guess from which on the network knows something."""
FEW_CLASSES = 4
"""With so few, twice the share of a guess is more than a useful network may have."""
LEAST_SHARE = 0.05
"""Top-1 below which no network is useful, however many classes it has; some of many classes keep their place in any
order."""
EXCHANGED_SHARE = 0.8
EXCHANGED_IMAGES = 5
"""So many images of a class, and so many answers of another one, belong together where these two are exchanged."""
CONSTANT_SHARE = 0.95
"""Share of images with one answer from which on the network answers nothing else."""
KNOWN_SHARE = 0.95
"""Share of what a learned order gets right that an order with a name must reach to be the explanation."""
ADVICE = (
    "check the preprocessing (--mean, --std, --color, --resize, --crop), the order of the classes (--classes) and that "
    "this is the right checkpoint"
)


def misfit(answers: Answers, class_names: Sequence[str], *, least: float | None = None) -> str | None:
    """The mismatch between the network and the labels, in one sentence; None if they fit, or too little is known.

    ``least`` is the top-1 that the user asked for, which then takes the place of the test for chance.
    """
    labels, found, classes = answers.labels, answers.reference, len(class_names)
    if labels is None or len(labels) < FEWEST or classes < 2:
        return None
    right = found == labels
    better = _better(found, labels, class_names)
    exchanged = _exchanged(found, labels, class_names)
    if not better and exchanged is None and (least is not None or not _at_chance(found, labels, classes)):
        return None
    constant = _constant(found, labels, class_names)
    seen = constant or (max(better)[1] if better else exchanged)
    share = f"the fp32 network names the right class for {percent(right.mean())} of {len(right)} images"
    return f"{share}{f'; {seen}' if seen else ', which is chance'}: {ADVICE}"


def share_in_another_order(answers: Answers, class_names: Sequence[str]) -> float:
    """Share of the images that would be right with labels in another order; 0 where no order is better."""
    labels, found = answers.labels, answers.reference
    if labels is None or len(labels) < FEWEST:
        return 0.0
    better = _better(found, labels, class_names)
    return max(better, default=(0, ""))[0] / len(labels)


def _at_chance(found: Labels, labels: Labels, classes: int) -> bool:
    """Whether the network knows no more than a guess, and enough images say so.

    A guess is right for one of ``classes``, or more often where it has learned how frequent the classes are.
    """
    count, right = len(labels), int((found == labels).sum())
    if classes > FEW_CLASSES and right / count < max(2 / classes, LEAST_SHARE):
        return True
    guess, spread = 1 / classes, 0.0
    if len(np.unique(labels)) > 1:
        answered, labelled = (np.bincount(side, minlength=classes) for side in (found, labels))
        guess = max(guess, float(answered @ labelled) / count**2)
        spread = _spread_of_matches(answered, labelled)
    if guess >= 1.0:
        return False
    # where most images have one class, most of a guess's answers are right whichever images they belong to
    knows = spread > 0 and right - guess * count > SURE * spread
    no_better = binomial_tail(right, count, guess) > 0.01 and not knows
    # a network halfway between a guess and the truth would hardly be right so seldom
    return no_better and 1 - binomial_tail(right + 1, count, (1 + guess) / 2) < 0.01


def _spread_of_matches(answered: NDArray[np.int64], labelled: NDArray[np.int64]) -> float:
    """Standard deviation of the number of right answers if the answers are given to the images at random.

    ``answered`` and ``labelled`` are [classes], the number of images of each class. These are the moments of a table
    whose margins are known.
    """
    count = int(labelled.sum())
    pairs = answered.astype(float) * labelled
    rest = (count - answered.astype(float)) * (count - labelled)
    total = float(pairs @ rest + pairs.sum() ** 2 - pairs @ pairs)
    return float(np.sqrt(total / (count**2 * (count - 1))))


Better = tuple[int, str]
"""How many images would be right with other labels, and what these are."""


def _better(found: Labels, labels: Labels, class_names: Sequence[str]) -> list[Better]:
    """Orders in which far more images would be right; a named order is preferred to a learned one."""
    known, learned = _in_known_orders(found, labels, class_names), _reordered(found, labels, class_names)
    if known and learned and max(known)[0] >= KNOWN_SHARE * max(learned)[0]:
        return known
    return [*known, *learned]


def _in_known_orders(found: Labels, labels: Labels, class_names: Sequence[str]) -> list[Better]:
    """Labels that count from another number than the classes do, and classes that a tool has sorted as texts."""
    better = []
    for words, meant in _known_orders(class_names):
        inside = (labels >= 0) & (labels < len(meant))
        moved = inside & (found == meant[np.where(inside, labels, 0)])
        if _fits_better(moved, found == labels):
            better.append((int(moved.sum()), f"{words}: {percent(moved.mean())} would be right"))
    return better


def _known_orders(class_names: Sequence[str]) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """Words, and the class that each label [classes] would mean."""
    count = len(class_names)
    yield "the labels seem to count from 1 instead of 0", np.arange(count) - 1
    yield "the labels seem to count from -1, or the network has a class in front", np.arange(count) + 1
    for words, keys in (
        ("numbers sorted as texts (0, 1, 10, 100, …)", list(map(str, range(count)))),
        ("sorted by their names", list(class_names)),
    ):
        order = np.array(sorted(range(count), key=keys.__getitem__), np.int64)
        yield f"the labels seem to be in the order of {words}", order
        yield f"the classes seem to be in the order of {words}", np.argsort(order)


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
    """The label [classes] of most images that the network puts into each class, and -1 where there is none.

    An order gives each label to one class alone: most answers would be right in a set of few classes, or of one that is
    far more frequent than the others, if all classes could get that label.
    """
    names = np.full(classes, -1)
    pairs, counts = np.unique(np.stack([found, labels]), axis=1, return_counts=True)
    taken = set()
    for place in np.argsort(-counts, kind="stable"):
        answer, label = pairs[:, place].tolist()
        if names[answer] < 0 and label not in taken:
            names[answer] = label
            taken.add(label)
    return names


def _exchanged(found: Labels, labels: Labels, class_names: Sequence[str]) -> str | None:
    """Classes whose images nearly all get one other class, which hardly any other image gets."""
    pairs, counts = np.unique(np.stack([labels, found]), axis=1, return_counts=True)
    of_label, of_answer = np.bincount(labels), np.bincount(found)
    examples = [
        f"{class_names[label]} is called {class_names[answer]}"
        for (label, answer), count in zip(pairs.T, counts, strict=True)
        if label != answer
        and count >= EXCHANGED_IMAGES
        and count >= EXCHANGED_SHARE * max(of_label[label], of_answer[answer])
    ]
    return f"some classes seem to be exchanged ({', '.join(examples[:3])})" if examples else None


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
