"""``rescompile run``: classify photographs with an engine."""

from __future__ import annotations

from pathlib import Path

import msgspec

from calibration.names import text_of
from rescompile.runtime.loading import load


class Classified(msgspec.Struct, frozen=True):
    """The most probable classes of one photograph, best first."""

    file: str
    classes: tuple[tuple[str, float], ...]
    """Class name and probability."""


def classify(directory: Path, photos: list[Path], *, top: int) -> tuple[Classified, ...]:
    """The ``top`` classes of each photograph.

    Raises:
        EngineError, BackendUnavailable: the engine cannot be loaded.
        ImageSetError: a photograph cannot be read.
    """
    with load(directory) as engine:
        return tuple(Classified(text_of(photo), tuple(engine.classify(photo, top))) for photo in photos)
