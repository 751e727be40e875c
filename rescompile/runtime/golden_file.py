"""``golden.npz``: the inputs on which an engine proves itself, and the answers expected of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.errors import EngineError
from rescompile.manifest import GOLDEN, Manifest
from rescompile.runtime.npz import read_arrays
from rescompile.runtime.sanity import check_manifest


def golden_bytes(images: NDArray[Any], logits: NDArray[np.float32]) -> bytes:
    """The contents of ``golden.npz``; the same arrays give the same bytes.

    Args:
        images: [N, ...], in the engine's input layout and dtype.
        logits: [N, classes] float32, what the deployable graph's reference execution makes of them.
    """
    stream = io.BytesIO()
    np.savez(stream, images=images, logits=logits)
    return stream.getvalue()


def read_golden(directory: Path, manifest: Manifest) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """The golden images [N, ...] in the engine's layout and dtype, and the logits [N, classes] expected of them.

    Raises:
        EngineError: the file cannot be read, or does not fit the manifest.
    """
    check_manifest(directory, manifest)
    path = directory / GOLDEN
    try:
        images, logits = read_arrays(path, ("images", "logits"))
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{path} holds no golden images and logits ({error}); build the engine again"
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
