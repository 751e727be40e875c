"""Recipes are data: known keys, one length, the paper's rates."""

from __future__ import annotations

from pathlib import Path

import pytest

from rescompile.errors import UsageError
from rescompile.training.recipe import Recipe, as_json, difference, find_recipe, recipe_names


def test_every_recipe_can_be_read_and_printed(tmp_path: Path) -> None:
    assert {"paper-cifar", "paper-imagenet", "torchvision-v1", "modern", "digits", "qat"} == set(
        recipe_names()
    )
    for name in recipe_names():
        recipe = find_recipe(name)
        (tmp_path / "mine.json").write_text(as_json(recipe))
        assert find_recipe(str(tmp_path / "mine.json")) == recipe


def test_the_papers_rates() -> None:
    recipe = find_recipe("paper-cifar")
    rates = {step: recipe.rate(step, 64000) for step in (0, 31999, 32000, 47999, 48000, 63999)}
    assert rates == pytest.approx({0: 0.1, 31999: 0.1, 32000: 0.01, 47999: 0.01, 48000: 0.001, 63999: 0.001})
    assert (recipe.batch_size, recipe.momentum, recipe.weight_decay) == (128, 0.9, 1e-4)


def test_warmup_and_cosine() -> None:
    recipe = find_recipe("modern", ["steps=100", "warmup=0.1", "learning_rate=1"])
    assert recipe.rate(0, 100) == pytest.approx(0.1)
    assert recipe.rate(9, 100) == pytest.approx(1.0)
    assert recipe.rate(55, 100) == pytest.approx(0.5)
    assert recipe.rate(99, 100) < 0.01


def test_a_warmup_that_ends_within_a_step_rises_no_further_than_the_rate() -> None:
    recipe = find_recipe("modern", ["steps=50", "warmup=0.05", "learning_rate=1"])
    assert [recipe.rate(step, 50) for step in range(3)] == pytest.approx([0.4, 0.8, 1.0])


def test_a_change_of_the_length_replaces_the_other_kind() -> None:
    assert find_recipe("modern", ["steps=7"]).total_steps(100) == 7
    assert find_recipe("paper-cifar", ["epochs=2.5"]).total_steps(10) == 25


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["learning_rat=0.2"], "Did you mean 'learning_rate'"),
        (["learning_rate=-1"], "learning_rate"),
        (["schedule=linear"], "schedule"),
        (["flip"], "KEY=VALUE"),
    ],
)
def test_what_recipes_do_not_have_is_refused(changes: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        find_recipe("paper-cifar", changes)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    with pytest.raises(UsageError, match="cannot be read"):
        find_recipe(str(path))
    path.write_text("[1]")
    with pytest.raises(UsageError, match="is not a recipe"):
        find_recipe(str(path))
    with pytest.raises(UsageError, match="Did you mean 'modern'"):
        find_recipe("modem")


def test_two_lengths_are_refused(tmp_path: Path) -> None:
    text = as_json(find_recipe("modern")).replace('"epochs": 100.0', '"epochs": 100.0, "steps": 5')
    (tmp_path / "two.json").write_text(text)
    with pytest.raises(UsageError, match="one of the two"):
        find_recipe(str(tmp_path / "two.json"))


def test_difference_names_the_field() -> None:
    one: Recipe = find_recipe("paper-cifar")
    assert difference(one, one) is None
    assert (
        difference(one, find_recipe("paper-cifar", ["batch_size=64"])) == "batch_size was 128, here it is 64"
    )
