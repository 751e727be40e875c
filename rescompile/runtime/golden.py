"""Golden images and answers of an engine: reads ``golden.npz``, and checks answers at any batch size."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import EngineError, reason_of
from rescompile.manifest import GOLDEN, Manifest
from rescompile.runtime.integrity import check_manifest
from rescompile.runtime.npz import read_arrays

Check = Callable[[Any], None]
"""Raises EngineError where an engine's answer is wrong."""


def golden_bytes(
    images: NDArray[Any],
    *outputs: NDArray[np.float32],
    other: tuple[NDArray[Any], ...] | None = None,
) -> bytes:
    """The contents of ``golden.npz``; the same arrays give the same bytes.

    Args:
        images: [N, ...], in the engine's input layout and dtype.
        outputs: [N, ...] float32, in the manifest's order, from the deployable graph in its reference execution.
        other: the same of images of another size, for an engine that takes several.
    """
    stream = io.BytesIO()
    named: dict[str, Any] = dict(zip(_names(len(outputs)), (images, *outputs), strict=True))
    if other is not None:
        named |= zip(_names(len(outputs), OTHER), other, strict=True)
    np.savez(stream, **named)
    return stream.getvalue()


OTHER = "other_"
"""Beginning of the names of arrays for another image size."""


def _names(outputs: int, beginning: str = "") -> tuple[str, ...]:
    """Names of the images and of as many outputs."""
    names = ("images", "logits", *(f"logits_{index}" for index in range(1, outputs)))
    return tuple(f"{beginning}{name}" for name in names)


def in_order(answer: Any, manifest: Manifest) -> tuple[NDArray[np.float32], ...]:
    """The arrays of an engine's answer, in the order of the manifest's outputs."""
    return (
        tuple(answer[output.name] for output in manifest.outputs) if isinstance(answer, dict) else (answer,)
    )


Golden = tuple[NDArray[Any], tuple[NDArray[np.float32], ...]]
"""Images [N, ...] in the engine's layout and dtype, and the expected outputs [N, ...]."""


def read_all_golden(source: EngineSource, manifest: Manifest) -> list[Golden]:
    """The golden images and answers of each size that the engine has them for; raises what ``read_golden`` does."""
    found = [read_golden(source, manifest)]
    return found if manifest.sizes is None else [*found, read_golden(source, manifest, OTHER)]


def read_golden(source: EngineSource, manifest: Manifest, beginning: str = "") -> Golden:
    """The golden images and answers whose names have this ``beginning``: those of the engine's own size.

    Raises:
        EngineError: the file cannot be read, or does not fit the manifest.
    """
    files = files_in(source)
    check_manifest(files.directory, manifest)
    path, content = files.path(GOLDEN), files.read(GOLDEN)
    try:
        images, *outputs = read_arrays(content, _names(len(manifest.outputs), beginning))
    except ValueError as error:
        raise EngineError(
            f"{path} does not hold golden images and logits ({reason_of(error)}); build the engine again"
        ) from error
    fed = manifest.inputs[0]
    fits = (
        manifest.takes(images.shape)
        and images.dtype == fed.dtype
        and len(images) > 0
        and all(
            len(found) == len(images)
            and output.matches(found.shape)
            and found.dtype == np.float32
            and np.isfinite(found).all()
            for found, output in zip(outputs, manifest.outputs, strict=True)
        )
    )
    if not fits:
        raise EngineError(f"{path} does not fit the manifest; build the engine again")
    return images, tuple(outputs)


def golden_batch(source: EngineSource, manifest: Manifest, size: int) -> tuple[NDArray[Any], Check]:
    """The golden images repeated to a batch [size, ...], and a check of the engine's answer for it.

    The check allows the error energy of the golden self-test once for each repetition of the golden images.

    Raises:
        EngineError: ``golden.npz`` cannot be read, or does not fit the manifest.
    """
    images, outputs = read_golden(source, manifest)
    picked = np.arange(size) % len(images)
    allowed, rounds = manifest.golden_relative_rms, math.ceil(size / len(images))

    def check(answer: Any) -> None:
        for golden, found in zip(outputs, in_order(answer, manifest), strict=True):
            expected = golden.astype(np.float64)
            energy = np.square(expected).sum() * rounds
            error = np.square(found.astype(np.float64) - expected[picked]).sum()
            if not error <= allowed**2 * energy:  # NaN, too
                raise EngineError(
                    f"the engine in {files_in(source).directory} gives wrong answers at batch {size} (relative RMS "
                    f"{math.sqrt(error / energy):.3g}, allowed {allowed:g}), so its time says nothing; build it again "
                    "here"
                )

    return np.ascontiguousarray(images[picked]), check
