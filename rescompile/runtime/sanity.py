"""What the types of a manifest cannot say: whether it describes an engine that this version can run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from rescompile.backends import BACKENDS
from rescompile.errors import EngineError
from rescompile.manifest import GOLDEN, MANIFEST, Manifest

_MOST_IMAGE_VALUES = 1 << 30
_MOST_LEAST_BATCH_VALUES = 1 << 31
"""Fewer images than the least batch are filled up in memory: 8 GiB of float32."""


def check_manifest(directory: Path, manifest: Manifest) -> None:
    """Refuse what no build writes, before memory is taken for it.

    Raises:
        EngineError: names the field and what is wrong with it.
    """
    path = directory / MANIFEST
    if manifest.backend not in BACKENDS:
        raise EngineError(
            f"{path} names the backend '{manifest.backend}', this rescompile has {', '.join(BACKENDS)}; "
            "install the version that built the engine"
        )
    if len(manifest.inputs) != 1 or len(manifest.outputs) != 1 or len(manifest.inputs[0].shape) != 4:
        raise EngineError(
            f"{path} describes no network with one image input and one output; build the engine again"
        )
    if not manifest.classes or manifest.outputs[0].shape[1:] != (len(manifest.classes),):
        raise EngineError(
            f"{path} names {len(manifest.classes)} classes for an output of shape "
            f"{list(manifest.outputs[0].shape)}; build the engine again"
        )
    _check_sizes(path, manifest)
    require_files(path, manifest, (GOLDEN,), "the engine cannot be tested")


def require_files(path: Path, manifest: Manifest, names: Sequence[str], consequence: str) -> None:
    """Refuse a manifest that does not list ``names``: what is not listed has no hash.

    Raises:
        EngineError: names the first of them.
    """
    for name in names:
        if name not in manifest.files:
            raise EngineError(f"{path} lists no {name}, so {consequence}; build it again")


def _check_sizes(path: Path, manifest: Manifest) -> None:
    batch, image = manifest.batch, manifest.inputs[0].shape[1:]
    if not batch.min <= batch.opt <= batch.max:
        raise EngineError(
            f"{path} has batch sizes {batch.min}:{batch.opt}:{batch.max}, which are not min <= opt <= max; "
            "build the engine again"
        )
    if min(image) < 1 or math.prod(image) > _MOST_IMAGE_VALUES:
        raise EngineError(f"{path} has an input of the absurd size {list(image)}; build the engine again")
    if batch.min * max(math.prod(image), len(manifest.classes)) > _MOST_LEAST_BATCH_VALUES:
        raise EngineError(
            f"{path} has a least batch of {batch.min:,} images, which fits into no memory; build the engine again"
        )
