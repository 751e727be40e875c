"""Opening the network that the user named: a depth, a model, a checkpoint, an ONNX file, or several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calibration.file_names import text_of
from calibration.images import InMemoryImages, open_image_set
from calibration.preprocess import CIFAR, IMAGENET, normalize
from rescompile.building.source import Source
from rescompile.building.source_from_graph import source_of
from rescompile.building.source_from_registry import NO_TRACE, PRETRAINED, from_weights
from rescompile.config import ModelConfig
from rescompile.errors import UsageError
from rescompile.manifest import CheckpointRef
from rescompile.progress import Progress
from rescompile.sources.class_names import read_class_names
from rescompile.sources.ensemble import ensemble_of
from rescompile.sources.framework_files import read_framework_file
from rescompile.sources.name_prefixes import has_scheme
from rescompile.sources.network import SourceNetwork
from rescompile.sources.onnx_file import read_onnx, sha256_of_onnx
from rescompile.sources.trained import Trained, read_trained

if TYPE_CHECKING:
    from rescompile.models.planned import Plan

_Sets = Sequence[Path | InMemoryImages | None]
TRIAL_IMAGES = 200
"""Labelled images on which readings of weights are tried."""


def open_source(config: ModelConfig, progress: Progress, labelled: _Sets = ()) -> Source:
    """Load, export and fold the network of ``config``.

    ``labelled`` are image sets that may have labels: they decide where weights alone leave the function open.

    Raises:
        UsageError: unknown model, or options that do not fit it.
        CheckpointError, DownloadError, GraphError: the weights or the graph cannot be used.
    """
    if config.members:
        return _ensemble([open_source(member, progress, labelled) for member in config.members], config)
    trained = read_trained(Path(config.weights)) if config.network is None else None
    if trained is not None:
        config = _as_trained(config, trained)
    network = config.network or _brought(config)
    if network is not None:
        return source_of(network, config)
    if config.depth is not None or config.model is not None or config.weights in PRETRAINED:
        source = from_weights(config, progress, None)
        return source if trained is None else _with_origin(source, trained, config)
    return _from_weights_alone(config, progress, labelled)


def _ensemble(members: list[Source], config: ModelConfig) -> Source:
    """One source of several, each of which was read and checked on its own."""
    for member in members:
        if len(member.graph.graph.output) > 1:
            raise UsageError(
                f"{member.checkpoint.source} has several outputs; an ensemble averages networks of one"
            )
    networks = [
        SourceNetwork(
            graph=member.graph,
            name=member.name,
            checkpoint=member.checkpoint,
            preprocess=member.preprocess,
            class_names=member.class_names,
        )
        for member in members
    ]
    first = members[0]
    joined = source_of(
        ensemble_of(networks, config.ensemble_mean), ModelConfig(members=config.members, sizes=config.sizes)
    )
    remarks = (remark for member in members for remark in member.remarks)
    return replace(
        joined,
        class_names=first.class_names,
        is_imagenet=first.is_imagenet,
        members=tuple(members),
        random=any(member.random for member in members),
        preprocess_assumed=any(member.preprocess_assumed for member in members),
        calibration=next((member.calibration for member in members if member.calibration), None),
        remarks=(f"the answers are the mean of the {config.ensemble_mean}", *dict.fromkeys(remarks)),
    )


def _as_trained(config: ModelConfig, trained: Trained) -> ModelConfig:
    """``config`` with the network and preprocessing of its weights' own training; the user's options stay."""
    own = config.preprocess
    return replace(
        config,
        model=trained.model if config.depth is None and config.model is None else config.model,
        preprocess=replace(
            own, whole=own.whole or trained.preprocess, crop=own.crop or trained.preprocess.crop
        ),
    )


def _with_origin(source: Source, trained: Trained, config: ModelConfig) -> Source:
    """``source`` with the classes and images that ``rescompile train`` wrote beside the weights."""
    beside = None if trained.calibration is None else Path(config.weights).with_name(trained.calibration)
    return replace(
        source,
        class_names=(trained.classes if config.classes is None else None) or source.class_names,
        calibration=beside if beside is not None and beside.is_file() else None,
        remarks=(
            *source.remarks,
            f"preprocessing and classes are from the training of {source.checkpoint.source}",
        ),
    )


def _from_weights_alone(config: ModelConfig, progress: Progress, labelled: _Sets) -> Source:
    """The network that a file's weights show: one of the registry, or any other."""
    from rescompile.sources.checkpoint import fits_registry, read_weights
    from rescompile.sources.foreign_weights import Trial, UnknownFormError, open_foreign

    weights = read_weights(Path(config.weights), config.entry)
    if fits_registry(weights):
        return from_weights(config, progress, weights)
    trial = Trial(images=partial(_labelled_images, config, labelled), stride_on=config.stride_on)
    crop = config.preprocess.crop
    try:
        network = open_foreign(weights, trial, (crop, crop) if isinstance(crop, int) else crop)
    except UnknownFormError:
        if weights.spec is None:
            raise
        # almost a network of the registry: what is missing from it says more
        return from_weights(config, progress, weights)
    note = NO_TRACE.format(network.name)
    return source_of(replace(network, notes=(*network.notes, note)), config)


def _labelled_images(
    config: ModelConfig, sets: _Sets, plan: Plan, classes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
    """Normalized images with labels of ``classes`` classes, from the first set that has them."""
    default = IMAGENET if plan.maxpool else CIFAR
    preprocess = config.preprocess.apply(default, channels=plan.channels)
    known = None if config.classes is None else read_class_names(config.classes, classes)
    for path in sets:
        images = None if path is None else open_image_set(path, limit=TRIAL_IMAGES, known=known)
        if images is not None and images.labels is not None and images.labels_fit(classes):
            pixels = np.concatenate([batch.images for batch in images.batches(preprocess, TRIAL_IMAGES)])
            return normalize(pixels, preprocess), images.labels
    return None


def _brought(config: ModelConfig) -> SourceNetwork | None:
    """The network of an ONNX file, of another framework's file or of an optional package, if that was asked."""
    crop = config.preprocess.crop
    size = (crop, crop) if isinstance(crop, int) else crop
    if config.onnx is not None:
        return _onnx_network(config.onnx)
    if config.model is not None and has_scheme(config.model):
        from rescompile.sources.packages import open_named

        return open_named(config.model, config.weights, size=size, seed=config.seed, outputs=config.outputs)
    if config.depth is None and config.model is None and config.weights not in (*PRETRAINED, "random"):
        return read_framework_file(Path(config.weights), size)
    return None


def _onnx_network(path: Path) -> SourceNetwork:
    return SourceNetwork(
        graph=read_onnx(path),
        name=path.stem,
        checkpoint=CheckpointRef(sha256_of_onnx(path), text_of(path.name)),
    )
