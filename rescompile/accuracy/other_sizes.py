"""Comparison of an engine with its fp32 network at other sizes of images than the one that it was calibrated for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.images import ImageSet
from calibration.preprocess import size_words
from rescompile.accuracy.parity import Measurement, Network, compare_logits
from rescompile.manifest import Manifest, TensorSpec
from rescompile.progress import Progress
from rescompile.runtime.inputs import at_size

MOST_IMAGES = 512
"""Images that are compared at each size."""
PLANES = TensorSpec("", (-1, -1, -1, -1), "float32", "NCHW")
"""The reference's input."""


def compare_at_sizes(
    reference: Network, candidate: Network, *, images: ImageSet, manifest: Manifest, progress: Progress
) -> Mapping[str, Measurement]:
    """``compare_logits`` at the ends of the engine's sizes, by size in words; empty for an engine of one size.

    The images are those that the engine's own size gives, sampled to the other ones.
    """
    if manifest.sizes is None:
        return {}
    compared = images.part(np.arange(len(images)) < MOST_IMAGES)
    return {
        size_words(size): compare_logits(
            _resampled(reference, PLANES, size),
            _resampled(candidate, manifest.inputs[0], size),
            images=compared,
            preprocess=manifest.preprocess,
            candidate_input=manifest.inputs[0],
            outputs=manifest.outputs,
            progress=progress,
        )
        for size in manifest.sizes.ends
        if size != manifest.preprocess.size
    }


def with_sizes(
    measured: Measurement,
    reference: Network,
    candidate: Network,
    *,
    images: ImageSet,
    manifest: Manifest,
    progress: Progress,
) -> Measurement:
    """``measured`` with the comparison at the ends of the engine's sizes."""
    found = compare_at_sizes(reference, candidate, images=images, manifest=manifest, progress=progress)
    return replace(measured, at_sizes=found)


def _resampled(network: Network, port: TensorSpec, size: tuple[int, int]) -> Callable[[NDArray[Any]], Any]:
    return lambda images: network(at_size(images, port, size))
