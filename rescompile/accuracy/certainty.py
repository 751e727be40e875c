"""When the verdict on some images of a set, drawn at random, is the one that all of them would give.

One looks again after every draw, so bounds must hold at all looks together. For a count among N images, such as those
that two networks answer differently, D is ruled out once what was seen is improbable under it (Waudby-Smith and Ramdas,
2020, "Confidence sequences for sampling without replacement"):

    P(k of n images | D of N)  <=  error / (n + 1)          (hypergeometric)

If D is true, 1 / ((n + 1) P) is a martingale that starts at 1, so it ever exceeds 1 / error with probability ``error``
at most, however often one looks (Ville's inequality).

The relative RMS is a mean without bounds, which no number of images certifies without an assumption. Here that is a
finite variance: the mean of |error|^2 - limit^2 |reference|^2 has the bounds of Waudby-Smith et al. (2021,
"Time-uniform central limit theory and asymptotic confidence sequences"), which hold for many images (``FIRST``).
What a few images hide, such as errors that are far larger than those that were seen, no draw excludes: reports say so.
docs/how-to/verdict.md says what follows for users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rescompile.metrics import Answers
from rescompile.report import Limits, Parity

ERROR = 0.001
"""Probability at most with which the images that were left out would change the verdict."""
FIRST, EVERY = 128, 64
"""Images before the first look, and between looks."""

FOR_EACH_CLASS, MOST_FOR_CLASSES = 32, 512
"""With labels, so many images of a class before the first look, where those of all are not more than the second number:
with fewer, two exchanged classes often go unseen. Where there are more classes, that would take most of the set."""

Finding = bool | None
"""Whether all images would meet a limit; None where that is open."""


@dataclass(frozen=True)
class Seen:
    """The comparison of the images that were drawn so far, out of ``total``."""

    parity: Parity
    answers: Answers
    energies: tuple[NDArray[np.float64], NDArray[np.float64]]
    """Squared norms [n] of the reference's outputs and of the error."""
    total: int


def draws(count: int, first: int = FIRST) -> Iterator[NDArray[np.bool_]]:
    """Random parts of ``count`` images, always the same: ``first`` of them, then ``EVERY`` at a time."""
    order = np.random.default_rng(0).permutation(count)
    for part in np.split(order, np.arange(first, count, EVERY)):
        chosen = np.zeros(count, np.bool_)
        chosen[part] = True
        yield chosen


def before_first_look(classes: int | None) -> int:
    """Images to compare before the first look; ``classes`` is the number of labelled classes, None without labels."""
    wanted = FOR_EACH_CLASS * (classes or 0)
    return max(FIRST, wanted) if wanted <= MOST_FOR_CLASSES else FIRST


def verdict_of(seen: Seen, limits: Limits) -> Finding:
    """Whether all images would pass, where that is certain but for ``ERROR``; always open without a limit."""
    checks = _checks(seen, limits)
    if not checks:
        return None
    findings = [check(ERROR / len(checks)) for check in checks]
    if False in findings:
        return False
    return None if None in findings else True


def _checks(seen: Seen, limits: Limits) -> list[Callable[[float], Finding]]:
    """For each limit on the answers a function of the error that it may make."""
    parity, answers, labels = seen.parity, seen.answers, seen.answers.labels
    right, right_before = answers.engine == labels, answers.reference == labels
    found: list[Callable[[float], Finding]] = []
    if (agreement := limits.min_agreement) is not None:
        found.append(
            lambda error: _at_least(agreement, _share(answers.engine == answers.reference, seen, error))
        )
    if (top1 := limits.min_top1) is not None:
        found.append(lambda error: _at_least(top1, _share(right, seen, error)))
    if (drop := limits.max_top1_drop) is not None:
        found.append(
            lambda error: _drop(right_before & ~right, right & ~right_before, seen, drop / 100, error)
        )
    if (rms := limits.max_relative_rms) is not None:
        found.append(lambda error: _rms(seen, rms, error))
    # what the worst image decides can be missed for good, but never met before the last one
    if (cosine := limits.min_cosine) is not None:
        found.append(lambda _: None if (parity.worst_cosine or 0.0) >= cosine else False)
    if (most := limits.max_error) is not None:
        found.append(lambda _: None if parity.max_abs <= most else False)
    return found


def count_bounds(hits: int, seen: int, total: int, error: float) -> tuple[int, int]:
    """Fewest and most of ``total`` images that may be hits after ``hits`` among ``seen`` random ones.

    Over any number of looks, one of the bounds is wrong with probability ``error`` at most.
    """
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, total + 1)))])
    counts = np.arange(hits, total - (seen - hits) + 1)
    of_hits = logs[counts] - logs[hits] - logs[counts - hits]
    misses, missed = total - counts, seen - hits
    of_misses = logs[misses] - logs[missed] - logs[misses - missed]
    in_all = logs[total] - logs[seen] - logs[total - seen]
    possible = counts[of_hits + of_misses - in_all > math.log(error / (seen + 1))]
    return int(possible[0]), int(possible[-1])


def mean_bounds(values: NDArray[np.float64], error: float) -> tuple[float, float]:
    """Bounds of the mean that ``values`` are drawn from, for many values, over any number of looks."""
    count = len(values)
    spread = -2 * math.log(error)
    # narrowest near the first look
    weight = count * (spread + math.log(spread + 1)) / FIRST
    reach = math.sqrt(2 * (weight + 1) / (count * weight) * math.log(math.sqrt(weight + 1) / error))
    mean, deviation = float(values.mean()), float(values.std())
    return mean - reach * deviation, mean + reach * deviation


def _share(hits: NDArray[np.bool_], seen: Seen, error: float) -> tuple[float, float]:
    low, high = count_bounds(int(hits.sum()), len(hits), seen.total, error)
    return low / seen.total, high / seen.total


def _at_least(asked: float, bounds: tuple[float, float]) -> Finding:
    low, high = bounds
    return True if low >= asked else False if high < asked else None


def _drop(lost: NDArray[np.bool_], won: NDArray[np.bool_], seen: Seen, asked: float, error: float) -> Finding:
    """Whether the images that the engine alone has wrong exceed those that it alone has right by at most ``asked``."""
    (fewest_lost, most_lost), (fewest_won, most_won) = (_share(side, seen, error / 2) for side in (lost, won))
    return _at_least(-asked, (fewest_won - most_lost, most_won - fewest_lost))


def _rms(seen: Seen, asked: float, error: float) -> Finding:
    reference, errors = seen.energies
    low, high = mean_bounds(errors - asked**2 * reference, error)
    return True if high <= 0 else False if low > 0 else None
