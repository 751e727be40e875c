"""Labels that do not fit the network are noticed; those that fit, however hard the images, are not."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescompile.accuracy.label_fit import FEWEST, misfit
from rescompile.metrics import Answers


def answers(labels: np.ndarray, found: np.ndarray) -> Answers:
    return Answers(reference=found, engine=found, labels=labels)


def network(count: int, classes: int, top1: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and the answers of a network that is right with probability ``top1``."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    wrong = (labels + random.integers(1, classes, count)) % classes
    return labels, np.where(random.random(count) < top1, labels, wrong)


def names(classes: int) -> list[str]:
    return [f"c{index}" for index in range(classes)]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(60, 400),
    classes=st.sampled_from([2, 3, 5, 10, 100, 1000]),
    top1=st.floats(0.3, 1.0),
)
def test_labels_of_a_network_that_does_its_work_fit(seed: int, count: int, classes: int, top1: float) -> None:
    top1 = max(top1, {2: 0.85, 3: 0.75, 5: 0.7}.get(classes, 0.45))
    labels, found = network(count, classes, top1, seed)
    assert misfit(answers(labels, found), names(classes)) is None


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    classes=st.sampled_from([2, 5, 10, 100]),
    top1=st.floats(0.7, 1.0),
    kind=st.sampled_from(["permuted", "from 1", "noise", "constant", "rare", "two swapped"]),
)
def test_labels_that_do_not_fit_are_noticed(seed: int, classes: int, top1: float, kind: str) -> None:
    random = np.random.default_rng(seed)
    labels, found = network(600, classes, top1, seed)
    if kind == "permuted":
        labels = ((np.arange(classes) + random.integers(1, classes)) % classes)[labels]
    elif kind == "from 1":
        labels = (labels + 1) % classes
    elif kind == "noise":
        labels = random.permutation(labels)
    elif kind == "constant":
        found = np.full_like(found, 1)
    elif kind == "rare":  # nine of ten images are of one class, which is the answer to everything
        labels = np.where(random.random(600) < 0.9, 1, labels)
        found = np.full_like(found, 1)
    else:
        top1 = max(top1, 0.95)
        labels, found = network(60 * classes, classes, top1, seed)
        labels = np.where(labels < 2, 1 - labels, labels)
    assert misfit(answers(labels, found), names(classes)) is not None


def test_the_sentence_says_what_was_seen() -> None:
    labels, found = network(200, 9, 0.95)
    cases = {
        "count from 1 instead of 0: 9[0-9.]+ % would be right": (labels + 1, found),
        r"in another order.*\(c0 is labelled c9, c1 is labelled c8": (9 - labels, found),
        "it names c3 for 200 of 200 images": (labels, np.full_like(found, 3)),
        "the right class for [0-9.]+ % of 200 images, which is chance: check the preprocessing": (
            np.random.default_rng(3).permutation(labels), found,
        ),
    }  # fmt: skip
    for words, (told, answered) in cases.items():
        sentence = misfit(answers(told, answered), names(10))
        assert sentence is not None
        assert re.search(words, sentence), sentence


def test_a_thousand_classes_and_none_of_sixty_is_no_fit() -> None:
    labels, found = network(60, 1000, 1.0)
    assert misfit(answers(np.random.default_rng(1).permutation(1000)[labels], found), names(1000)) is not None


@pytest.mark.parametrize("classes", [1, 10])
def test_few_images_and_one_class_say_nothing(classes: int) -> None:
    labels = np.zeros(FEWEST - 1 if classes > 1 else 50, int)
    assert misfit(answers(labels, labels + 1), names(classes)) is None


def test_without_labels_nothing_is_said() -> None:
    found = np.arange(100) % 10
    assert misfit(Answers(found, found, None), names(10)) is None


@pytest.mark.parametrize("step", [1, -1])
def test_one_image_of_each_class_is_enough_for_an_order_that_people_get_by_accident(step: int) -> None:
    labels = np.arange(1000)
    names_of_things = [f"thing {value}" for value in np.random.default_rng(5).permutation(1000)]
    for keys in (list(map(str, range(1000))), names_of_things):
        order = np.array(sorted(range(1000), key=keys.__getitem__))
        answered = order if step == 1 else np.argsort(order)
        sentence = misfit(answers(labels, answered), names_of_things)
        assert sentence is not None
        assert "in the order of" in sentence
        assert "100 % would be right" in sentence


def test_a_weak_network_of_two_classes_is_judged() -> None:
    labels, found = network(600, 2, 0.68)
    assert misfit(answers(labels, found), names(2)) is None


def test_few_rare_images_that_are_all_right_fit() -> None:
    labels = np.zeros(100, int)
    labels[:3] = 1
    assert misfit(answers(labels, labels), names(2)) is None


def test_who_asks_for_a_top1_is_not_told_what_chance_is() -> None:
    random = np.random.default_rng(1)
    labels, found = random.integers(0, 10, 300), random.integers(0, 10, 300)
    assert misfit(answers(labels, found), names(10)) is not None
    assert misfit(answers(labels, found), names(10), least=0.05) is None
    assert misfit(answers((found + 1) % 10, found), names(10), least=0.05) is not None


def test_classes_that_are_often_confused_are_no_other_order() -> None:
    """Half of one class is taken for another: an ordinary weakness of a network."""
    random = np.random.default_rng(0)
    labels, found = network(500, 10, 0.95)
    found = np.where((labels == 3) & (random.random(500) < 0.5), 5, found)
    assert misfit(answers(labels, found), names(10)) is None


@pytest.mark.parametrize("frequent", [1.0, 0.97])
def test_images_of_nearly_one_class_are_no_other_order(frequent: float) -> None:
    """If every answer meant the most frequent label, more would be right; but no order of classes does that."""
    random = np.random.default_rng(3)
    labels = np.where(random.random(300) < frequent, 3, random.integers(0, 10, 300))
    found = np.where(random.random(300) < 0.83, labels, random.integers(0, 10, 300))
    assert misfit(answers(labels, found), names(10)) is None
