"""Golden images at any batch size, and the check that an engine's answers to them are right: before a call is timed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.errors import EngineError
from rescompile.manifest import Manifest
from rescompile.runtime.golden_file import read_golden

Check = Callable[[NDArray[Any]], None]


def golden_batch(directory: Path, manifest: Manifest, size: int) -> tuple[NDArray[Any], Check]:
    """``size`` golden images [size, ...], over and over, and the check of the logits [size, classes] they give.

    The check holds the error's energy against that of all golden logits, once for every time that they are gone
    through: what the golden self-test allows over all images, it allows over some of them. It raises EngineError.

    Raises:
        EngineError: ``golden.npz`` cannot be read, or does not fit the manifest.
    """
    images, logits = read_golden(directory, manifest)
    picked = np.arange(size) % len(images)
    expected = logits[picked].astype(np.float64)
    energy = np.square(logits.astype(np.float64)).sum() * math.ceil(size / len(logits))
    allowed = manifest.golden_relative_rms

    def check(answer: NDArray[Any]) -> None:
        error = np.square(answer.astype(np.float64) - expected).sum()
        if not error <= allowed**2 * energy:  # NaN, too
            raise EngineError(
                f"the engine in {directory} gives wrong answers at batch {size} (relative RMS "
                f"{math.sqrt(error / energy):.3g}, allowed {allowed:g}), so its time says nothing; build it again here"
            )

    return np.ascontiguousarray(images[picked]), check
