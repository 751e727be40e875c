"""The images on which a new engine is judged, and its logits on them beside those of the fp32 network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from calibration.errors import ImageSetError
from calibration.images import ImageSet, open_image_set
from calibration.images.builtin import builtin_image_set
from rescompile.accuracy.limits import limits_for
from rescompile.accuracy.other_sizes import with_sizes
from rescompile.accuracy.parity import (
    Measurement,
    Network,
    all_outputs,
    compare_logits,
    open_unlabelled,
    open_validation_set,
)
from rescompile.accuracy.verify import stand_in
from rescompile.backends.base import Backend
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.calibrate import Calibrated
from rescompile.building.deployable import Deployable
from rescompile.building.ensemble_accuracy import members_of, unmeasured
from rescompile.building.float_images import words_beyond_pixels
from rescompile.building.source import Source
from rescompile.building.task import is_guess
from rescompile.config import BuildConfig
from rescompile.errors import UsageError
from rescompile.graph.image_sizes import for_sizes
from rescompile.graph.shared.names import INPUT
from rescompile.manifest import Manifest
from rescompile.metrics import ONE_CLASS
from rescompile.progress import Progress
from rescompile.runtime.integrity import read_engine
from rescompile.runtime.loading import load, simulate

FALLBACK_IMAGES = 128
"""Images taken from the calibration set where no validation set was passed."""
SIMULATED_IMAGES = 64
"""Images run through the deployable graph where the engine cannot run; an unoptimized graph is slow."""


@dataclass(frozen=True)
class Validation:
    """The images that an engine is judged on, and notes about them for the user."""

    images: ImageSet
    executed: bool
    """Whether the engine itself can run on this machine."""
    notes: tuple[str, ...]
    thumbnails: bool = False
    """Whether the report may have small copies of the images."""


def choose_validation(config: BuildConfig, source: Source, backend: Backend) -> Validation:
    """The validation set; without one, calibration images; without these, the built-in photographs.

    Raises:
        ImageSetError: a set cannot be used.
        UsageError: a top-1 drop was asked, but there are no labels.
    """
    executed = backend.availability(config.target).run
    limit = config.validation_images
    if not executed:
        limit = min(limit or SIMULATED_IMAGES, SIMULATED_IMAGES)
    decides = source.kind in ONE_CLASS
    classes = 2 if source.kind == "binary" else source.class_count
    needs_labels = config.limits is not None and config.limits.need_labels
    if config.validation_set is not None and not decides:
        skip = config.calibration.skip_unreadable
        images, notes_on_labels = open_unlabelled(config.validation_set, limit=limit, skip_unreadable=skip)
        notes = [*images.notes, *notes_on_labels]
    elif config.validation_set is not None:
        images = open_validation_set(
            config.validation_set,
            classes=classes,
            limit=limit,
            need_labels=needs_labels,
            skip_unreadable=config.calibration.skip_unreadable,
            names=source.class_names,
        )
        notes = [*images.notes, *images.remarks(classes, source.class_names)]
    else:
        images = _other_images(config, source, classes, min(limit or FALLBACK_IMAGES, FALLBACK_IMAGES))
        images = images if decides else replace(images, labels=None)
        if needs_labels and images.labels is None:
            raise UsageError(
                f"--max-top1-drop and --min-top1 need labels, which {images.source} does not have; pass a labelled "
                "--validation-set"
            )
        notes = [
            f"no validation set was passed, so parity was measured on {images.source}; pass --validation-set for "
            "figures on images that the calibration has not seen"
        ]
    if is_guess(source, config, labelled=images.labels is not None):
        notes.append(
            f"the {source.class_count} outputs were judged as classes, because nothing says what they mean (no class "
            "names, no labels); if they are numbers, labels or features, pass --task values, multilabel or features"
        )
    if not executed:
        notes.append(
            f"this engine cannot run on this machine: the figures are those of its {stand_in(backend.name)} on "
            f"{len(images)} images; run `rescompile verify` where the engine runs"
        )
    return Validation(images, executed, tuple(notes), config.thumbnails)


def notes_on_float_images(
    validation: Validation, source: Source, calibrated: Calibrated | None
) -> tuple[str, ...]:
    """A sentence where float images of the verdict are not what the preprocessing makes of photographs."""
    beyond = words_beyond_pixels(validation.images, source.preprocess)
    if beyond is None:
        return ()
    if calibrated is None or INPUT not in calibrated.table.tensors:
        return (f"photographs are fed otherwise than these images: {beyond}",)
    # of an input with one scale the calibration says it
    return (f"the engine clips what it is judged on: {beyond}",) if calibrated.exact_pixels else ()


def _other_images(config: BuildConfig, source: Source, classes: int, count: int) -> ImageSet:
    calibration = config.calibration
    if calibration.images is None:
        return builtin_image_set(count=count, seed=calibration.seed)
    opened = partial(
        open_image_set, calibration.images, limit=count, seed=calibration.seed,
        skip_unreadable=calibration.skip_unreadable,
    )  # fmt: skip
    # calibration needs no labels, so its class folders may be those of another data set; here that would matter
    try:
        images = opened(known=source.class_names)
    except ImageSetError:
        return replace(opened(), labels=None)
    return images if images.labels_fit(classes) else replace(images, labels=None)


def measure(
    folder: Path,
    manifest: Manifest,
    source: Source,
    deployable: Deployable,
    validation: Validation,
    config: BuildConfig,
    progress: Progress,
) -> Measurement:
    """Compare the engine in ``folder``, after its golden self-test, with the fp32 network.

    Where the engine cannot run here, its backend's simulation is measured, or else the deployable graph.

    Raises:
        EngineError: the engine does not reproduce its golden answers.
    """
    opened = for_sizes(source.graph, manifest.sizes)
    members = members_of(source, deployable, validation.images)
    plain = all_outputs(reference_session(opened, optimize=True), manifest.outputs)
    reference = plain if members is None else members.reference
    engine = load(folder) if validation.executed else simulate(read_engine(folder))
    written = for_sizes(deployable.graph, manifest.sizes)
    graph = None if engine else reference_session(written, optimize=False)
    limits = limits_for(config.limits, config.precision, random_weights=source.random, kind=source.kind)
    candidate: Network | None = engine if graph is None else all_outputs(graph, manifest.outputs)
    assert candidate is not None
    try:
        found = compare_logits(
            reference,
            candidate,
            images=validation.images,
            preprocess=source.preprocess,
            candidate_input=manifest.inputs[0],
            outputs=manifest.outputs,
            thumbnails=validation.thumbnails,
            progress=progress,
            compared=members.count if members else None,
            until=None if members or manifest.sizes or config.validate == "all" else limits,
        )
        found = with_sizes(
            found, plain, candidate, images=validation.images, manifest=manifest, progress=progress
        )
        return replace(found, members=members.accuracies() if members else unmeasured(source))
    finally:
        if members is not None:
            members.close()
        if engine is not None:
            engine.close()
        if graph is not None:
            graph.close()
