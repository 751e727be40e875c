"""Calibration as a stage: image set to table, with everything that the table must say of its origin."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.builtin import builtin_image_set
from calibration.collect import collect
from calibration.images import ImageSet, open_image_set
from calibration.preprocess import normalize
from calibration.table import CalibrationTable, make_table, read_table
from rescompile.config import DEFAULT_METHOD, CalibrationConfig
from rescompile.errors import UsageError
from rescompile.graph.topology import quantized_tensors
from rescompile.source import Source
from rescompile.stages import Progress

BATCH = 4
"""Images per forward pass: large enough for speed on a CPU, small enough for memory with every activation kept."""

BUILT_IN_ADVICE = (
    "INT8 scales come from the built-in photographs; pass --calibration-set with a few hundred of your own images for "
    "the best accuracy"
)


@dataclass(frozen=True)
class Calibrated:
    """The table, and what the user must be told about where its scales come from."""

    table: CalibrationTable
    notes: tuple[str, ...] = ()


def calibration_images(config: CalibrationConfig, source: Source) -> ImageSet:
    """The user's set, or the built-in photographs for an ImageNet network.

    Raises:
        UsageError: no set was passed and the network is not ImageNet's.
        ImageSetError: the set cannot be used.
    """
    if config.images is not None:
        return open_image_set(
            config.images, limit=config.limit, seed=config.seed, skip_unreadable=config.skip_unreadable
        )
    if not source.is_imagenet:
        raise UsageError(
            f"int8 needs images of what this {source.name} with {source.class_count} classes will see, to choose "
            "scales: pass --calibration-set FOLDER (a few hundred images, no labels needed) or --calibration FILE"
        )
    return builtin_image_set(seed=config.seed)


def calibrate(source: Source, config: CalibrationConfig, progress: Progress) -> Calibrated:
    """The table of ``config``: read from its file and checked, or measured on its images.

    Raises:
        TableError: the table is damaged or was made for another checkpoint, preprocessing or graph.
        UsageError, ImageSetError: as ``calibration_images``.
        CalibrationError: activations that are not finite.
    """
    tensors = quantized_tensors(source.graph)
    if config.table is not None:
        table = read_table(config.table)
        table.check(checkpoint_sha256=source.checkpoint.sha256, preprocess=source.preprocess, tensors=tensors)
        return Calibrated(table if config.method is None else table.with_method(config.method))
    images = calibration_images(config, source)
    histograms = collect(
        source.graph.SerializeToString(),
        tensors,
        (normalize(batch.images, source.preprocess) for batch in images.batches(source.preprocess, BATCH)),
        progress=lambda done: progress.advanced(done, len(images)),
    )
    table = make_table(
        histograms,
        config.method or DEFAULT_METHOD,
        model=source.name,
        checkpoint_sha256=source.checkpoint.sha256,
        images=images,
        preprocess=source.preprocess,
    )
    advice = (BUILT_IN_ADVICE,) if config.images is None else ()
    return Calibrated(table, (*advice, *notes_on_skipped(images)))


def notes_on_skipped(images: ImageSet) -> tuple[str, ...]:
    """The names of unreadable images that were left out, where there are any."""
    if not images.skipped:
        return ()
    named = ", ".join(images.skipped[:5]) + (", …" if len(images.skipped) > 5 else "")
    return (f"{len(images.skipped)} unreadable images of {images.source} were left out: {named}",)
