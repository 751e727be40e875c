"""The comparison of two networks' logits on one image set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration.errors import ImageSetError
from calibration.images import ImageSet, open_image_set
from calibration.preprocess import Preprocess, normalize
from rescompile.accuracy.verify import ImageBatch, Measurement, Network, measure_parity
from rescompile.manifest import TensorSpec
from rescompile.progress import Progress

BATCH = 8


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
