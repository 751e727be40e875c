"""``rescompile run``: what an engine says about photographs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from calibration.names import text_of
from rescompile.manifest import OutputKind
from rescompile.runtime.answers import most_probable, named_values
from rescompile.runtime.golden import in_order
from rescompile.runtime.loading import load


class Classified(msgspec.Struct, frozen=True, kw_only=True):
    """One output for one photograph."""

    file: str
    classes: tuple[tuple[str, float], ...] = ()
    """Names and their probabilities, best first."""
    kind: OutputKind = "classes"
    values: tuple[tuple[str, float], ...] = ()
    """Names and numbers of values and features, in their order."""
    output: str | None = None
    """Name of the output, where the engine has several."""


def classify(
    directory: Path, photos: list[Path], *, top: int, trusted_keys: Sequence[Path] = ()
) -> tuple[Classified, ...]:
    """The ``top`` classes or labels of each photograph, or the values.

    Raises:
        EngineError, BackendUnavailable: the engine cannot be loaded.
        ImageSetError: a photograph cannot be read.
    """
    answers = []
    with load(directory, trusted_keys=trusted_keys) as engine:
        outputs = engine.manifest.outputs
        for photo in photos:
            found = in_order(engine(engine.preprocess(photo)), engine.manifest)
            for output, (values,) in zip(outputs, found, strict=True):
                numbers = output.kind in ("values", "features")
                answers.append(
                    Classified(
                        file=text_of(photo),
                        classes=() if numbers else tuple(most_probable(values, output, top)),
                        kind=output.kind,
                        values=tuple(named_values(values, output)) if numbers else (),
                        output=output.name if len(outputs) > 1 else None,
                    )
                )
    return tuple(answers)
