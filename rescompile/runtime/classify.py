"""``rescompile run``: what an engine says about photographs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.cores import available_cores
from calibration.errors import ImageSetError
from calibration.file_names import text_of
from calibration.preprocess import Size
from rescompile.backends.base import Hint, RunOptions
from rescompile.errors import UsageError
from rescompile.files import atomic_write, check_output_file
from rescompile.manifest import Manifest, OutputKind, OutputSpec
from rescompile.runtime.answers import Prediction, most_probable, named_values
from rescompile.runtime.engine import Engine
from rescompile.runtime.golden import in_order
from rescompile.runtime.loading import load_checked, read_trusted
from rescompile.wording import counted

BATCH = 8
"""Photographs per request: an INT8 engine takes a third less time for each of them than for one alone."""


Skip = Callable[[ImageSetError], object]
"""Called with the reason why a photograph is left out, by several threads."""


class Classified(msgspec.Struct, frozen=True, kw_only=True):
    """One output for one photograph."""

    file: str
    predictions: tuple[Prediction, ...]
    """Classes, best first; or all values and features, in their order."""
    kind: OutputKind = "classes"
    output: str | None = None
    """Name of the output, where the engine has several."""


def classify(
    directory: Path,
    photos: list[Path],
    *,
    top: int,
    size: Size | None = None,
    trusted_keys: Sequence[Path] = (),
    skip: Skip | None = None,
) -> tuple[Classified, ...]:
    """The ``top`` classes or labels of each photograph, or the values; ``size`` as in ``Engine.preprocess``.

    ``skip`` is called for each photograph that cannot be read, which is then left out; None stops there.

    Raises:
        UsageError: the engine does not take this ``size``.
        EngineError, BackendUnavailable: the engine cannot be loaded.
        ImageSetError: a photograph cannot be read, or with ``skip`` none can.
    """
    checked = read_trusted(directory, trusted_keys)
    with load_checked(checked, options=options_for(photos, checked.manifest)) as engine:
        found = classify_with(engine, photos, top=top, size=size, skip=skip)
    if photos and not found:
        raise ImageSetError(f"not one of {counted(len(photos), 'photograph')} can be read; pass image files")
    return found


def options_for(photos: Sequence[Path], manifest: Manifest) -> RunOptions:
    """How to load the engine for ``classify_with``: compiled for the requests that it will get."""
    hint: Hint = "throughput" if len(photos) > 1 else "latency"
    return RunOptions(hint=hint, batch=_batch_of(photos, manifest))


def classify_with(
    engine: Engine, photos: Sequence[Path], *, top: int, size: Size | None = None, skip: Skip | None = None
) -> tuple[Classified, ...]:
    """``classify`` with an engine in memory, ``BATCH`` photographs at a time in each of the CPU's threads."""
    batch = _batch_of(photos, engine.manifest)

    def answer(start: int) -> list[Classified]:
        inputs = _inputs(engine, photos[start : start + batch], size, skip)
        if not inputs:
            return []
        some, images = [photo for photo, _ in inputs], np.concatenate([each for _, each in inputs])
        # the last batch is filled up: computing a few images more takes less time than compiling for another size
        images = images[np.minimum(np.arange(batch), len(some) - 1)] if len(some) < batch else images
        found = in_order(engine(images), engine.manifest)
        return [
            _classified(photo, values[place], output, top, named=len(found) > 1)
            for place, photo in enumerate(some)
            for output, values in zip(engine.manifest.outputs, found, strict=True)
        ]

    # each thread decodes, resizes and infers photos of its own, so neither work waits for the other
    with ThreadPoolExecutor(_threads_of(photos)) as pool:
        return tuple(each for answers in pool.map(answer, range(0, len(photos), batch)) for each in answers)


def _inputs(
    engine: Engine, photos: Sequence[Path], size: Size | None, skip: Skip | None
) -> list[tuple[Path, NDArray[Any]]]:
    """Each photograph that can be read, and the engine's input [1, ...] of it."""
    found = []
    for photo in photos:
        try:
            found.append((photo, engine.preprocess(photo, size)))
        except ImageSetError as error:
            if skip is None:
                raise
            skip(error)
    return found


def _threads_of(photos: Sequence[Path]) -> int:
    return max(1, min(len(photos), available_cores()))


def _batch_of(photos: Sequence[Path], manifest: Manifest) -> int:
    """Photographs of each request."""
    most = min(BATCH, manifest.batch.max, len(photos) // _threads_of(photos))
    return max(1, manifest.batch.min, most)


def _classified(
    photo: Path, values: NDArray[np.float32], output: OutputSpec, top: int, *, named: bool
) -> Classified:
    numbers = output.kind in ("values", "features")
    return Classified(
        file=text_of(photo),
        predictions=tuple(named_values(values, output) if numbers else most_probable(values, output, top)),
        kind=output.kind,
        output=output.name if named else None,
    )


def check_predictions_file(path: Path) -> None:
    """Refuse a file whose form is not known, or that cannot be written, before anything runs.

    Raises:
        UsageError: its name ends neither with .csv nor with .jsonl.
        OutputError: it cannot be written.
    """
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise UsageError(f"--output {path} has no known form; end its name with .csv or .jsonl")
    check_output_file(path)


def write_predictions(path: Path, answers: Sequence[Classified]) -> None:
    """Write one line for each prediction as CSV, or one line of JSON for each photograph."""
    if path.suffix.lower() == ".jsonl":
        atomic_write(path, b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers))
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "output", "rank", "class", "index", "probability", "value"])
    for answer in answers:
        for rank, each in enumerate(answer.predictions, 1):
            numbers = (each.probability, each.value)
            table.writerow([answer.file, answer.output, rank, each.name, each.index, *numbers])
    atomic_write(path, text.getvalue().encode())
