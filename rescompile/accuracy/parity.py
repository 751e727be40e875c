"""Which images decide about an engine, and the comparison of two networks on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from calibration.errors import ImageSetError
from calibration.images import ImageSet, open_image_set
from calibration.images.builtin import builtin_image_set
from calibration.preprocess import Preprocess, normalize
from rescompile.accuracy.verify import ImageBatch, Measurement, Network, measure_parity
from rescompile.building.calibrate import notes_on_skipped
from rescompile.building.source import Source
from rescompile.config import BuildConfig
from rescompile.errors import UsageError
from rescompile.manifest import TensorSpec
from rescompile.progress import Progress

FALLBACK_IMAGES = 128
"""Images taken from the calibration set where no validation set was passed."""
SIMULATED_IMAGES = 64
"""Images run through the deployable graph where the engine cannot run; an unoptimized graph is slow."""
BATCH = 8


@dataclass(frozen=True)
class Judges:
    """The images of a parity test, and what must be said of them."""

    images: ImageSet
    executed: bool
    """Whether the engine itself can run on this machine."""
    notes: tuple[str, ...]


def open_validation_set(
    path: Path, *, classes: int, limit: int | None, need_labels: bool, skip_unreadable: bool
) -> ImageSet:
    """The user's validation set for a network with ``classes`` classes.

    Raises:
        ImageSetError: it cannot be used, has no labels although they are needed, or has labels or class folders
            that do not match the network's classes.
    """
    images = open_image_set(path, limit=limit, need_labels=need_labels, skip_unreadable=skip_unreadable)
    if images.labels is None or images.labels_fit(classes):
        return images
    if images.by_folder:
        raise ImageSetError(
            f"{path} has {len(images.class_names or ())} class folders, the network has {classes} classes, so the "
            "position of a folder is not its class: add the missing folders (they may be empty), or write a labels.csv"
        )
    wrong = int(images.labels.argmax())
    raise ImageSetError(
        f"{path}: {images.images.names[wrong]} has label {images.labels[wrong]}, the network has classes 0 to "
        f"{classes - 1}: correct the label, or pass the image set that belongs to this network"
    )


def choose_images(
    config: BuildConfig, source: Source, *, executed: bool, stand_in: str = "deployable graph (onnxruntime)"
) -> Judges:
    """The validation set; without one, calibration images; without these, the built-in photographs.

    ``stand_in`` says what gives the figures of an engine that is not ``executed``.

    Raises:
        ImageSetError: a set cannot be used.
        UsageError: a top-1 drop was asked, but there are no labels.
    """
    notes: list[str] = []
    asked = config.limits is not None and config.limits.max_top1_drop is not None
    limit = config.validation_images
    if not executed:
        limit = min(limit or SIMULATED_IMAGES, SIMULATED_IMAGES)
    if config.validation_set is not None:
        images = open_validation_set(
            config.validation_set,
            classes=source.class_count,
            limit=limit,
            need_labels=asked,
            skip_unreadable=config.calibration.skip_unreadable,
        )
        notes += notes_on_skipped(images)
    else:
        images = _stand_in(config, source, min(limit or FALLBACK_IMAGES, FALLBACK_IMAGES))
        if asked and images.labels is None:
            raise UsageError(
                f"--max-top1-drop needs labels, which {images.source} does not have; pass a labelled --validation-set"
            )
        notes.append(
            f"no validation set was passed, so parity was measured on {images.source}; pass --validation-set for "
            "figures on images that the calibration has not seen"
        )
    if not executed:
        notes.append(
            f"this engine cannot run on this machine: the figures are those of its {stand_in} on {len(images)} "
            "images; run `rescompile verify` where the engine runs"
        )
    return Judges(images, executed, tuple(notes))


def _stand_in(config: BuildConfig, source: Source, count: int) -> ImageSet:
    calibration = config.calibration
    if calibration.images is not None:
        images = open_image_set(
            calibration.images,
            limit=count,
            seed=calibration.seed,
            skip_unreadable=calibration.skip_unreadable,
        )
        # class folders of another data set do no harm to calibration, which needs no labels; here they would
        return images if images.labels_fit(source.class_count) else replace(images, labels=None)
    return builtin_image_set(count=count, seed=calibration.seed)


def image_batches(images: ImageSet, preprocess: Preprocess, fed: TensorSpec) -> Iterator[ImageBatch]:
    """Batches as the fp32 reference takes them, beside the same images as the engine takes them."""
    for batch in images.batches(preprocess, BATCH):
        normalized = normalize(batch.images, preprocess)
        engine_input: Any = batch.images if fed.dtype == "uint8" else normalized
        yield ImageBatch(normalized, engine_input, batch.labels)


def compare(
    reference: Network,
    candidate: Network,
    *,
    images: ImageSet,
    preprocess: Preprocess,
    fed: TensorSpec,
    progress: Progress,
) -> Measurement:
    """Run both over ``images``, the candidate as ``fed`` says, and compare their logits.

    Raises:
        BackendError: the candidate's logits are not finite or of another shape.
        ImageSetError: an image cannot be read, or a label names no class of the network.
    """
    return measure_parity(
        reference,
        candidate,
        image_batches(images, preprocess, fed),
        image_source=images.source,
        image_fingerprint=images.fingerprint,
        total=len(images),
        progress=progress.advanced,
    )
