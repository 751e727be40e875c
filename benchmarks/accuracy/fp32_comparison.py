"""Compares the logits of any contender with those of the fp32 graph on the validation set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.checkpoints import Checkpoint
from calibration.images import open_image_set
from calibration.preprocess import Preprocess, normalize
from rescompile.backends.onnxruntime import reference_session
from rescompile.metrics import ParityMeter
from rescompile.report import Parity

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


class Fp32Comparison:
    """The validation set and its fp32 logits, which are computed once."""

    def __init__(self, checkpoint: Checkpoint, steps: Preprocess, reference: Path) -> None:
        self.checkpoint, self.steps, self.reference = checkpoint, steps, reference
        run = reference_session(reference, optimize=True)
        self._logits = [run(pixels) for pixels, _ in self._batches()]

    def measure(self, engine: Run) -> Parity:
        """The comparison of ``engine`` with fp32."""
        meter = ParityMeter()
        for (pixels, labels), logits in zip(self._batches(), self._logits, strict=True):
            meter.update(logits, engine(pixels), labels)
        return meter.result(image_source=self.checkpoint.validation.name, image_fingerprint="")

    def _batches(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64] | None]]:
        images = open_image_set(self.checkpoint.validation, limit=None, seed=0)
        for batch in images.batches(self.steps, batch_size(self.steps)):
            yield normalize(batch.images, self.steps), batch.labels


def batch_size(steps: Preprocess) -> int:
    """Images at once: many small ones, few large ones."""
    return max(4, 64 * 32 * 32 // math.prod(steps.size))
