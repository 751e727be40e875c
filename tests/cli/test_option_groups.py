"""Groups of options become options of one command, and come back as one object."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import typer

from rescompile.cli.option_groups import takes_groups
from rescompile.cli.options import (
    CalibrationOptions,
    NetworkOptions,
    PreprocessingOptions,
    VerdictOptions,
    model_config,
)
from rescompile.errors import UsageError
from rescompile.report import Limits


@dataclass(frozen=True)
class Colours:
    """Two options."""

    shade: Annotated[str, typer.Option(help="Which shade.")] = "red"
    depth: Annotated[int, typer.Option(help="How deep.")] = 3


def test_the_fields_of_a_group_are_the_commands_parameters() -> None:
    @takes_groups
    def paint(colours: Colours, wall: Path, coats: int = 2) -> None:
        """Paint a wall."""

    parameters = inspect.signature(paint).parameters
    assert list(parameters) == ["shade", "depth", "wall", "coats"]
    assert parameters["shade"].default == "red"
    assert parameters["wall"].default is inspect.Parameter.empty
    assert paint.__doc__ == "Paint a wall."


def test_the_command_gets_the_group_as_one_object() -> None:
    seen: list[tuple[Colours, int]] = []

    @takes_groups
    def paint(colours: Colours, coats: int = 2) -> None:
        seen.append((colours, coats))

    paint(shade="blue", depth=1, coats=5)
    assert seen == [(Colours("blue", 1), 5)]


def test_groups_become_the_configuration() -> None:
    network = NetworkOptions(depth=50, weights="net.pth", stride_on="1x1", seed=3)
    made = model_config(network, PreprocessingOptions(crop="64", mean="0.1,0.2,0.3"))
    assert (made.depth, made.weights, made.stride_on, made.seed) == (50, "net.pth", "1x1", 3)
    assert (made.preprocess.crop, made.preprocess.mean) == (64, (0.1, 0.2, 0.3))
    calibration = CalibrationOptions(calibration_set=Path("a"), calibration_images=7, skip_unreadable=True)
    found = calibration.config(seed=3)
    assert (found.images, found.limit, found.seed, found.skip_unreadable) == (Path("a"), 7, 3, True)


@pytest.mark.parametrize("text", ["a,b,c", "0.5,0.5,", "0.5 0.5 0.5", ""])
def test_three_numbers_are_three_numbers(text: str) -> None:
    for option in ("mean", "std"):
        with pytest.raises(UsageError, match=f"--{option} {text} is not understood; write three numbers"):
            PreprocessingOptions(**{option: text}).config()


@pytest.mark.parametrize(
    ("option", "text", "size"),
    [
        ("crop", "224", 224),
        ("crop", "224x224", 224),
        ("crop", "256x128", (256, 128)),
        ("resize", "0", 0),
        ("resize", "224x224", (224, 224)),
        ("resize", "256X128", (256, 128)),
    ],
)
def test_sizes_are_a_side_or_height_and_width(option: str, text: str, size: object) -> None:
    assert getattr(PreprocessingOptions(**{option: text}).config(), option) == size


@pytest.mark.parametrize("text", ["", "a", "224x", "1x2x3", "22.4", "²", "1" * 20])
def test_what_is_no_size_is_not_understood(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"--crop .*is not understood; write a side \(224\) or height x width"
    ):
        PreprocessingOptions(crop=text).config()


def test_a_mean_may_be_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "mean.npy", np.full((3, 8, 8), 100.0))
    made = PreprocessingOptions(mean=str(tmp_path / "mean.npy")).config()
    assert made.mean == tmp_path / "mean.npy"


def test_no_limit_asked_is_none() -> None:
    assert VerdictOptions().limits() is None
    for limit in (
        "max_top1_drop",
        "min_agreement",
        "max_relative_rms",
        "min_top1",
        "min_cosine",
        "max_error",
        "min_speedup",
    ):
        assert VerdictOptions(**{limit: 0.3}).limits() == Limits(**{limit: 0.3})


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"min_agreement": 97}, "--min-agreement 97 is not between 0 and 1; it is a share"),
        ({"min_agreement": -0.1}, "not between 0 and 1"),
        ({"min_agreement": float("nan")}, "--min-agreement nan"),
        ({"max_top1_drop": -1}, "--max-top1-drop -1 is not between 0 and 100; it is in percentage points"),
        ({"max_top1_drop": 101}, "percentage points"),
        ({"max_relative_rms": -0.1}, "--max-relative-rms -0.1.*it is a ratio"),
        ({"min_cosine": 1.1}, "--min-cosine 1.1 is not between -1 and 1"),
        ({"max_error": -1}, "--max-error -1 is not a number of 0 or more; it is in the outputs' own unit"),
        ({"max_error": float("inf")}, "--max-error inf is not a number of 0 or more"),
        ({"min_speedup": float("nan")}, "--min-speedup nan is not a number of 0 or more; it is a ratio, 1.5"),
    ],
)
def test_limits_that_nothing_or_everything_keeps_are_refused(limits: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        VerdictOptions(**limits).limits()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_a_range_may_be_asked(share: float) -> None:
    assert VerdictOptions(min_agreement=share).limits() == Limits(min_agreement=share)
