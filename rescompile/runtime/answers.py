"""What the outputs for one image say, by their kind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.manifest import OutputSpec


def most_probable(values: NDArray[Any], output: OutputSpec, k: int) -> list[tuple[str, float]]:
    """The ``k`` most probable names of one image's logits [C], best first, with their probability."""
    logits = values.astype(np.float64)
    if output.kind == "classes":
        powers = np.exp(logits - logits.max())
        probabilities = powers / powers.sum()
    else:
        probabilities = np.exp(-np.logaddexp(0.0, -logits))
        if output.kind == "binary":
            probabilities = np.concatenate([1 - probabilities, probabilities])
    best = np.argsort(-probabilities, kind="stable")[:k]
    return [(output.labels[index], float(probabilities[index])) for index in best]


def named_values(values: NDArray[Any], output: OutputSpec) -> list[tuple[str, float]]:
    """Each number of one image's output [C] or [C, H, W] with its name, or its place where it has none."""
    flat = values.reshape(-1)
    names = output.labels or tuple(map(str, range(flat.size)))
    return [(name, float(value)) for name, value in zip(names, flat, strict=True)]
