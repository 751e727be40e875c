"""``weights.safetensors``: every weight as its kernel reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.triton.plan import Plan
from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import EngineError, reason_of
from rescompile.files import atomic_write
from rescompile.manifest import TRITON_WEIGHTS

Array = NDArray[Any]


def write_weights(directory: Path, weights: dict[str, Array]) -> None:
    """Write ``weights.safetensors``; raises OutputError where the disk is full."""
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(values) for name, values in weights.items()}
    atomic_write(directory / TRITON_WEIGHTS, save(contiguous))


def read_weights(source: EngineSource, plan: Plan) -> dict[str, Array]:
    """All weights of ``plan``, in the types and shapes that it lists.

    Raises:
        EngineError: the file is damaged, or does not hold the plan's weights.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    files = files_in(source)
    path, content = files.path(TRITON_WEIGHTS), files.read(TRITON_WEIGHTS)
    try:
        weights: dict[str, Array] = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise EngineError(
            f"{path} cannot be read ({reason_of(error)}); copy or build the engine again"
        ) from error
    for name, spec in plan.weights.items():
        values = weights.get(name)
        if values is None or (str(values.dtype), values.shape) != (spec.dtype, spec.shape):
            found = "is missing" if values is None else f"is {values.dtype} {list(values.shape)}"
            raise EngineError(
                f"{path} does not fit its plan: '{name}' {found}, not {spec.dtype} {list(spec.shape)}; "
                "build the engine again"
            )
    return {name: weights[name] for name in plan.weights}
