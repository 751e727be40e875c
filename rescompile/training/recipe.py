"""Recipes: how a network is trained, as data. The built-in ones are the files of ``recipes/``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from rescompile.errors import UsageError, did_you_mean, reason_of

Augmentation = Literal["auto", "none", "pad-crop", "scale-crop", "resized-crop"]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0)]
Count = Annotated[int, Meta(ge=1)]


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One way to train. The length is ``steps``, or else ``epochs``; parts of it are fractions."""

    about: str = ""
    """Origin, in words."""
    steps: Count | None = None
    epochs: Positive | None = None
    batch_size: Count
    """Images of one step, in all processes together."""
    optimizer: Literal["sgd", "adam"] = "sgd"
    learning_rate: Positive
    schedule: Literal["constant", "steps", "cosine"]
    milestones: tuple[Fraction, ...] = ()
    """Where ``steps`` multiplies the rate by ``factor``."""
    factor: Positive = 0.1
    warmup: Fraction = 0.0
    """Part of the length in which the rate rises from zero."""
    slow_start_depth: int = 0
    """Networks of at least this depth begin at a tenth of the rate, until the training error is below 80 %. 0: none."""
    momentum: Fraction = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Meta(ge=0)] = 0.0
    decay_norms_and_biases: bool = True
    label_smoothing: Fraction = 0.0
    average: Fraction = 0.0
    """Decay of the exponential moving average of the weights, which is then what is tested and kept. 0: none."""
    augmentation: Augmentation
    """pad-crop: as for CIFAR. scale-crop: shorter side of 256 to 480 pixels. resized-crop: as GoogLeNet."""
    padding: Annotated[int, Meta(ge=0, le=64)] = 4
    flip: bool = False
    color: Literal["none", "lighting", "jitter"] = "none"
    """lighting: along the principal axes of ImageNet's colours, as AlexNet."""
    normalization: Literal["pixel-mean", "channel-mean", "imagenet"]
    """The mean to subtract: that of each pixel, of each channel (with a division by the deviation), or ImageNet's."""
    image_size: Annotated[int, Meta(ge=4, le=1024)] | None = None
    """None: the size of small images, 224 for photographs."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("a recipe has steps or epochs, one of the two")

    def total_steps(self, steps_per_epoch: int) -> int:
        """The length of the training in steps."""
        return self.steps or max(1, math.ceil((self.epochs or 0) * steps_per_epoch))

    def rate(self, step: int, total: int) -> float:
        """The learning rate of ``step``, which counts from 0."""
        part = step / total
        if part < self.warmup:
            return self.learning_rate * min(1.0, (step + 1) / (self.warmup * total))
        if self.schedule == "steps":
            return self.learning_rate * self.factor ** sum(part >= milestone for milestone in self.milestones)
        if self.schedule == "cosine":
            turned = (part - self.warmup) / max(1 - self.warmup, 1e-9)
            return self.learning_rate * (1 + math.cos(math.pi * turned)) / 2
        return self.learning_rate


def recipe_names() -> list[str]:
    """Names of the built-in recipes."""
    folder = resources.files("rescompile.training") / "recipes"
    return sorted(
        entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json")
    )


def find_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """The recipe ``name``, or that of a .json file, with ``changes`` of the form KEY=VALUE.

    Raises:
        UsageError: there is no such recipe, or a key or a value that recipes do not have.
    """
    text, origin = _text(name)
    try:
        fields = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UsageError(f"{origin} is not a recipe ({error}): write one JSON object") from None
    for change in changes:
        key, given, value = change.partition("=")
        if not given:
            raise UsageError(
                f"--set {change} is not understood: write KEY=VALUE, such as weight_decay=0.0005"
            )
        if key in ("steps", "epochs"):
            fields = {k: v for k, v in fields.items() if k not in ("steps", "epochs")}
        fields[key] = _value(value)
    _check_keys(fields, origin)
    try:
        return msgspec.convert(fields, Recipe)
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(
            f"{origin}: {_lower(str(error))}; --show-recipe prints a recipe to start from"
        ) from None


def as_json(recipe: Recipe) -> str:
    """The recipe as a file that ``--recipe`` takes."""
    fields = {key: value for key, value in msgspec.structs.asdict(recipe).items() if value is not None}
    return msgspec.json.format(msgspec.json.encode(fields), indent=2).decode()


def difference(before: Recipe, now: Recipe) -> str | None:
    """The first field that differs, with both values, in words."""
    for name in Recipe.__struct_fields__:
        old, new = getattr(before, name), getattr(now, name)
        if old != new and name != "about":
            return f"{name} was {old}, here it is {new}"
    return None


def _text(name: str) -> tuple[bytes, str]:
    if not name.endswith(".json"):
        if name not in recipe_names():
            hint = did_you_mean(name, recipe_names())
            raise UsageError(
                f"there is no recipe '{name}'.{hint} Known: {', '.join(recipe_names())}, or a .json file"
            )
        return (
            resources.files("rescompile.training") / "recipes" / f"{name}.json"
        ).read_bytes(), f"recipe {name}"
    try:
        return Path(name).read_bytes(), name
    except OSError as error:
        raise UsageError(f"the recipe {name} cannot be read ({reason_of(error)}): check the path") from None


def _check_keys(fields: dict[str, Any], origin: str) -> None:
    known = list(Recipe.__struct_fields__)
    for key in fields:
        if key not in known:
            raise UsageError(
                f"{origin}: a recipe has no '{key}'.{did_you_mean(key, known)} It has {', '.join(known)}"
            )


def _value(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
