"""Calibration as a stage: image set to table, with everything that the table must say of its origin."""

from __future__ import annotations

from calibration.builtin import builtin_image_set
from calibration.collect import collect
from calibration.images import ImageSet, open_image_set
from calibration.preprocess import normalize
from calibration.table import CalibrationTable, make_table, read_table
from rescompile.config import DEFAULT_METHOD, BuildConfig, CalibrationConfig
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


def calibrate(source: Source, config: CalibrationConfig, progress: Progress) -> CalibrationTable:
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
        return table if config.method is None else table.with_method(config.method)
    images = calibration_images(config, source)
    histograms = collect(
        source.graph.SerializeToString(),
        tensors,
        (normalize(batch.images, source.preprocess) for batch in images.batches(source.preprocess, BATCH)),
        progress=lambda done: progress.advanced(done, len(images)),
    )
    return make_table(
        histograms,
        config.method or DEFAULT_METHOD,
        model=source.name,
        checkpoint_sha256=source.checkpoint.sha256,
        images=images,
        preprocess=source.preprocess,
    )


def notes_on(config: BuildConfig, source: Source) -> tuple[str, ...]:
    """What the user must be told about the numbers of this build."""
    notes = []
    if config.precision == "int8" and config.calibration.images is None and config.calibration.table is None:
        notes.append(BUILT_IN_ADVICE)
    if source.random:
        notes.append("the weights are random: this engine is for timing, and its accuracy means nothing")
    return tuple(notes)
