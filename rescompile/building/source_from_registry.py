"""A source from weights of a network of the registry."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from calibration.memory import free_memory
from calibration.preprocess import Preprocess
from rescompile.building.fidelity import check_against_function
from rescompile.building.size_check import check_sizes
from rescompile.building.source import IMAGENET_CLASSES, Source, class_names_of
from rescompile.building.source_from_graph import source_of
from rescompile.config import ModelConfig
from rescompile.graph.fold import fold
from rescompile.graph.placement import place
from rescompile.manifest import CheckpointRef
from rescompile.progress import Progress
from rescompile.sources.network import SourceNetwork

if TYPE_CHECKING:
    from rescompile.models.resnet import ResNet
    from rescompile.models.specification import ModelSpec
    from rescompile.sources.checkpoint import Weights

PRETRAINED: dict[str, Literal["v1", "v2"]] = {"pretrained": "v1", "pretrained-v2": "v2"}
"""torchvision's two training recipes; other tools publish INT8 figures for the first."""
NO_TRACE = (
    "the weights alone were read as a usual {}: dilation, padding modes and pools leave no trace in them; if the "
    "network differs there, pass it with --onnx, or the live module to rescompile.build"
)


def from_weights(config: ModelConfig, progress: Progress, weights: Weights | None) -> Source:
    """The network of ``config``, from ``weights`` that were read already or from those that it names.

    Raises:
        UsageError: unknown model, or options that do not fit it.
        CheckpointError, DownloadError: the weights cannot be used.
    """
    from rescompile.graph.export import export

    spec, model, checkpoint, default, remarks = _network(config, progress, weights)
    if spec.pre_activation:
        return _traced(config, spec, model, checkpoint, remarks)
    preprocess = config.preprocess.apply(default, channels=model.conv1.in_channels)
    graph = place(fold(export(model, image_size=preprocess.size)))
    free_memory()
    check_against_function(graph, partial(_answers, model), None)
    check_sizes(graph, config, preprocess, lambda: [lambda images: [_answers(model, images)]])
    classes = model.fc.out_features
    is_imagenet = spec.family == "imagenet" and classes == IMAGENET_CLASSES
    return Source(
        graph=graph,
        name=spec.name,
        depth=spec.depth,
        residual_adds=spec.residual_adds,
        class_count=classes,
        class_names=class_names_of(config.classes, classes, is_imagenet=is_imagenet),
        checkpoint=checkpoint,
        preprocess=preprocess,
        is_imagenet=is_imagenet,
        random=config.weights == "random",
        preprocess_assumed=config.weights not in PRETRAINED and not config.preprocess.states_normalization,
        remarks=remarks,
    )


def _traced(
    config: ModelConfig, spec: ModelSpec, model: ResNet, checkpoint: CheckpointRef, remarks: tuple[str, ...]
) -> Source:
    """A network of the registry whose norms do not fold into the convolution before them."""
    from rescompile.sources.foreign_weights import export_module

    height, width = _pair(config.preprocess.crop or spec.image_size)
    network = SourceNetwork(
        graph=export_module(model, (model.conv1.in_channels, height, width)),
        name=spec.name,
        checkpoint=checkpoint,
        notes=remarks,
        reference=partial(_answers, model),
    )
    return replace(source_of(network, config), depth=spec.depth)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _network(
    config: ModelConfig, progress: Progress, weights: Weights | None
) -> tuple[ModelSpec, ResNet, CheckpointRef, Preprocess, tuple[str, ...]]:
    """The network in PyTorch, the origin of its weights, the preprocessing it expects, and remarks for the user."""
    from rescompile.models import registry
    from rescompile.models.random_weights import random_model
    from rescompile.sources import checkpoint as checkpoints
    from rescompile.sources import pretrained

    named = config.depth is not None or config.model is not None
    with_options = partial(registry.with_options, shortcut=config.shortcut, stride_on=config.stride_on)
    # options that do not fit are refused here, before anything is downloaded
    spec = with_options(registry.find(depth=config.depth, name=config.model)) if named else None
    if config.weights == "random":
        assert spec is not None  # ModelConfig asks for a name where the weights cannot tell
        model, digest = random_model(spec, spec.default_classes, config.seed)
        return spec, model, CheckpointRef(digest, f"random, seed {config.seed}"), spec.preprocess, ()
    version = PRETRAINED.get(config.weights)
    if version is None:
        path = Path(config.weights)
    else:
        assert spec is not None
        path = pretrained.fetch_pretrained(spec, version, progress=progress.advanced)
    loaded = checkpoints.checkpoint_of(weights or checkpoints.read_weights(path, config.entry), spec)
    remarks = loaded.notes
    if spec is None:
        spec = with_options(checkpoints.spec_of(loaded))
        remarks = (*remarks, NO_TRACE.format(spec.name))
    model = checkpoints.build_model(spec, loaded)
    preprocess = pretrained.pretrained_preprocess(spec, version) if version else spec.preprocess
    return spec, model, CheckpointRef(loaded.sha256, loaded.source), preprocess, remarks


def _answers(model: ResNet, images: NDArray[np.float32]) -> NDArray[np.float32]:
    import torch

    with torch.inference_mode():
        answers: NDArray[np.float32] = model(torch.from_numpy(images)).numpy()
    return answers
