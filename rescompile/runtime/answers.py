"""The answer for one image, from its outputs and their kind."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rescompile.manifest import OutputSpec


class Prediction(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"name": "class"}):
    """A class with its probability, or a number of an engine that returns values: the form of the C++ example."""

    name: str
    index: int
    probability: float | None = None
    value: float | None = None


def most_probable(values: NDArray[Any], output: OutputSpec, k: int) -> list[Prediction]:
    """The ``k`` most probable classes of one image's logits [C], best first."""
    logits = values.astype(np.float64)
    if output.kind == "classes":
        powers = np.exp(logits - logits.max())
        probabilities = powers / powers.sum()
    else:
        probabilities = np.exp(-np.logaddexp(0.0, -logits))
        if output.kind == "binary":
            probabilities = np.concatenate([1 - probabilities, probabilities])
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [
        Prediction(name=output.labels[index], index=int(index), probability=float(probabilities[index]))
        for index in best
    ]


def named_values(values: NDArray[Any], output: OutputSpec) -> list[Prediction]:
    """Each number of one image's output [C] or [C, H, W] with its name, or its place where it has none."""
    flat = values.reshape(-1)
    names = output.labels or tuple(map(str, range(flat.size)))
    return [
        Prediction(name=name, index=index, value=float(value))
        for index, (name, value) in enumerate(zip(names, flat, strict=True))
    ]
