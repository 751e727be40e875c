"""A verdict on some images is that on all of them, but for the error that is stated."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.images import InMemoryImages, open_image_set
from calibration.preprocess import CIFAR
from rescompile.accuracy.certainty import (
    ERROR,
    EVERY,
    FIRST,
    before_first_look,
    count_bounds,
    draws,
    mean_bounds,
)
from rescompile.accuracy.label_fit import misfit
from rescompile.accuracy.limits import judge_all
from rescompile.accuracy.parity import Measurement, compare_logits
from rescompile.manifest import OutputKind, OutputSpec, TensorSpec
from rescompile.progress import Silent
from rescompile.report import Limits

COUNT = 600
PIXELS = TensorSpec("input", (-1, 32, 32, 3), "uint8", "NHWC")
PROMISE = 0.05


def hypergeometric(hits: int, seen: int, of: int, total: int) -> float:
    return math.comb(of, hits) * math.comb(total - of, seen - hits) / math.comb(total, seen)


@pytest.mark.parametrize(("hits", "seen", "total"), [(0, 5, 30), (5, 5, 30), (2, 20, 30), (7, 30, 30)])
def test_counts_are_ruled_out_where_what_was_seen_is_improbable(hits: int, seen: int, total: int) -> None:
    expected = [
        of
        for of in range(total + 1)
        if seen - (total - of) <= hits <= of and hypergeometric(hits, seen, of, total) > PROMISE / (seen + 1)
    ]
    assert count_bounds(hits, seen, total, PROMISE) == (expected[0], expected[-1])


def test_a_true_count_is_seldom_ruled_out_however_often_one_looks() -> None:
    rng, total, of, wrong = np.random.default_rng(0), 120, 12, 0
    for _ in range(300):
        drawn = np.cumsum(rng.permutation(total) < of)
        bounds = (count_bounds(int(drawn[n - 1]), n, total, PROMISE) for n in range(5, total + 1, 5))
        wrong += any(not low <= of <= high for low, high in bounds)
    assert wrong <= 300 * PROMISE


def test_a_true_mean_is_seldom_ruled_out_and_the_bounds_close_in() -> None:
    rng, wrong = np.random.default_rng(1), 0
    for _ in range(200):
        values = rng.exponential(size=4 * FIRST)
        bounds = [mean_bounds(values[:n], PROMISE) for n in range(FIRST, len(values) + 1, EVERY)]
        wrong += any(not low <= 1.0 <= high for low, high in bounds)
    assert wrong <= 200 * PROMISE
    assert bounds[-1][1] - bounds[-1][0] < 0.7 * (bounds[0][1] - bounds[0][0])


def test_draws_are_random_parts_of_all_images() -> None:
    parts = list(draws(COUNT))
    assert [int(part.sum()) for part in parts[:2]] == [FIRST, EVERY]
    assert (np.sum(parts, axis=0) == 1).all()
    assert 0.3 < np.flatnonzero(parts[0]).mean() / COUNT < 0.7
    assert [len(part) for part in draws(5)] == [5]


def compared(
    limits: Limits | None,
    *,
    wrong: float = 0.0,
    noise: float = 0.01,
    kind: OutputKind = "classes",
    count: int = COUNT,
    right: float = 1.0,
    names: tuple[str, ...] = (),
    exchange: tuple[int, int] = (0, 0),
) -> Measurement:
    """Images whose first pixel is their class; the engine names the next class for a share ``wrong`` of them.

    Two classes are exchanged in the labels.
    """
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 10, count)
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = labels, rng.random(count) < wrong
    images[:, 0, 0, 2] = rng.integers(0, 255, count)
    labels = np.where(rng.random(count) < right, labels, (labels + 1) % 10)
    one, other = exchange
    labels = np.choose((labels == one) + 2 * (labels == other), (labels, other, one, one))

    def reference(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        steps = np.array(CIFAR.mean, np.float32), np.array(CIFAR.std, np.float32)
        classes = np.rint((batch[:, 0, 0, 0] * steps[1][0] + steps[0][0]) * 255).astype(int)
        return np.eye(10, dtype=np.float32)[classes]

    def engine(batch: NDArray[Any]) -> NDArray[np.float32]:
        moved = (batch[:, 0, 0, 0].astype(int) + batch[:, 0, 0, 1]) % 10
        error = (batch[:, 0, 0, 2].astype(np.float32) / 255 - 0.5)[:, None] * noise
        return np.eye(10, dtype=np.float32)[moved] + error

    return compare_logits(
        reference,
        engine,
        images=open_image_set(InMemoryImages(images, labels)),
        preprocess=CIFAR,
        candidate_input=PIXELS,
        outputs=(OutputSpec("logits", (-1, 10), "float32", "NC", kind, names),),
        progress=Silent(),
        until=limits,
    )


@pytest.mark.parametrize(
    ("limits", "case", "stops"),
    [
        (Limits(min_agreement=0.9), {}, True),
        (Limits(min_agreement=0.9, max_relative_rms=0.15), {}, True),
        (Limits(min_agreement=0.9), {"wrong": 0.5}, True),
        (Limits(min_agreement=0.925), {"wrong": 0.1}, False),
        (Limits(min_agreement=0.999), {}, False),
        (Limits(max_relative_rms=0.46), {"noise": 0.5}, False),
        (Limits(max_relative_rms=0.1), {"noise": 2.0}, True),
        (Limits(min_top1=0.8), {}, True),
        (Limits(min_top1=0.8), {"right": 0.5}, True),
        (Limits(min_top1=0.8), {"right": 0.8}, False),
        (Limits(max_top1_drop=20.0), {}, True),
        (Limits(max_top1_drop=20.0), {"wrong": 0.6}, True),
        (Limits(max_top1_drop=0.3), {}, False),
        (Limits(min_agreement=0.9, min_cosine=0.5), {}, False),
        (Limits(min_agreement=0.9, min_cosine=0.5), {"wrong": 0.3}, True),
        (Limits(min_agreement=0.9, max_error=0.5), {}, False),
        (Limits(min_agreement=0.9, max_error=0.5), {"wrong": 0.3}, True),
        (Limits(), {}, False),
        (None, {}, False),
    ],
)
def test_a_comparison_stops_where_its_verdict_is_certain(
    limits: Limits | None, case: dict[str, float], stops: bool
) -> None:
    found = compared(limits, **case)  # type: ignore[arg-type]
    whole = compared(None, **case)  # type: ignore[arg-type]
    parity = found.parity
    assert (parity.images < COUNT) == stops
    assert parity.image_set_size == (COUNT if stops else None)
    asked = limits or Limits()
    verdicts = [all(check.passed for check in judge_all(each, asked)) for each in (found, whole)]
    assert verdicts[0] == verdicts[1]
    assert len(found.names) == parity.images == len(found.answers.engine)
    assert (parity.image_fingerprint == whole.parity.image_fingerprint) != stops
    if not stops:
        same = {"relative_rms": 0.0, "cosine": 0.0}
        assert msgspec.structs.replace(parity, **same) == msgspec.structs.replace(whole.parity, **same)


DIGITS = tuple(map(str, range(10)))


def test_exchanged_classes_are_seen_before_a_comparison_stops() -> None:
    limits = Limits(min_agreement=0.9)
    fitting = compared(limits, names=DIGITS)
    assert fitting.parity.images == before_first_look(10) == 320
    exchanged = compared(limits, names=DIGITS, exchange=(3, 5))
    assert exchanged.parity.image_set_size is None
    assert "in another order" in str(misfit(exchanged.answers, DIGITS))


@pytest.mark.parametrize(("classes", "images"), [(None, 128), (2, 128), (5, 160), (16, 512), (17, 128)])
def test_with_few_classes_each_is_seen_often_enough(classes: int | None, images: int) -> None:
    assert before_first_look(classes) == images


def test_changed_images_keep_their_names() -> None:
    found = compared(Limits(min_agreement=0.6), wrong=0.1)
    assert found.parity.image_set_size == COUNT
    again = compared(None, wrong=0.1)
    changed = {again.names[change.image] for change in again.changes}
    assert found.changes
    assert {found.names[change.image] for change in found.changes} <= changed


def test_outputs_without_classes_and_small_sets_are_compared_whole() -> None:
    limits = Limits(max_relative_rms=10.0)
    assert compared(limits).parity.images == FIRST
    assert compared(limits, kind="values").parity.images == COUNT
    assert compared(limits, count=FIRST).parity.image_set_size is None
    assert ERROR == 0.001
