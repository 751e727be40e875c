"""Golden images and logits of an engine: reads ``golden.npz``, and checks answers at any batch size."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.errors import EngineError, reason_of
from rescompile.manifest import GOLDEN, Manifest
from rescompile.runtime.integrity import check_manifest
from rescompile.runtime.npz import read_arrays

Check = Callable[[NDArray[Any]], None]
"""Raises EngineError where logits [N, classes] are wrong."""


def golden_bytes(images: NDArray[Any], logits: NDArray[np.float32]) -> bytes:
    """The contents of ``golden.npz``; the same arrays give the same bytes.

    Args:
        images: [N, ...], in the engine's input layout and dtype.
        logits: [N, classes] float32, from the deployable graph in its reference execution.
    """
    stream = io.BytesIO()
    np.savez(stream, images=images, logits=logits)
    return stream.getvalue()


def read_golden(directory: Path, manifest: Manifest) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """The golden images [N, ...] in the engine's layout and dtype, and the expected logits [N, classes].

    Raises:
        EngineError: the file cannot be read, or does not fit the manifest.
    """
    check_manifest(directory, manifest)
    path = directory / GOLDEN
    try:
        images, logits = read_arrays(path, ("images", "logits"))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{path} does not hold golden images and logits ({reason_of(error)}); build the engine again"
        ) from error
    fed = manifest.inputs[0]
    fits = (
        images.shape[1:] == fed.shape[1:]
        and images.dtype == fed.dtype
        and len(images) > 0
        and logits.shape == (len(images), len(manifest.classes))
        and logits.dtype == np.float32
        and np.isfinite(logits).all()
    )
    if not fits:
        raise EngineError(f"{path} does not fit the manifest; build the engine again")
    return images, logits


def golden_batch(directory: Path, manifest: Manifest, size: int) -> tuple[NDArray[Any], Check]:
    """The golden images repeated to a batch [size, ...], and a check of the engine's logits [size, classes] for it.

    The check allows the error energy of the golden self-test once for each repetition of the golden images.

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
