"""Opening the network that the user named (a depth, a model, a checkpoint, an ONNX file) as one folded fp32 graph.

The later stages do not depend on where the network came from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx

from calibration.names import text_of
from calibration.preprocess import CIFAR, IMAGENET, Preprocess
from rescompile.backends.onnxruntime import reference_session
from rescompile.config import ModelConfig
from rescompile.errors import CheckpointError, GraphError, UsageError
from rescompile.graph.fold import fold
from rescompile.graph.recognise import Structure, recognise
from rescompile.graph.simplify import simplify
from rescompile.manifest import CheckpointRef
from rescompile.metrics import relative_rms
from rescompile.models.registry import IMAGENET_SPECS
from rescompile.progress import Progress
from rescompile.sources.class_names import imagenet_class_names, read_class_names
from rescompile.sources.onnx_file import read_onnx, sha256_of_onnx

if TYPE_CHECKING:
    from rescompile.models.resnet import ResNet
    from rescompile.models.specification import ModelSpec

IMAGENET_CLASSES = 1000
PRETRAINED: dict[str, Literal["v1", "v2"]] = {"pretrained": "v1", "pretrained-v2": "v2"}
"""torchvision's two training recipes; other tools publish INT8 figures for the first."""
NO_TRACE = (
    "the weights alone were read as a usual {}: dilation, padding modes and pools leave no trace in them; if the "
    "network differs there, pass it with --onnx, or the live module to rescompile.build"
)
EXPORT_TOLERANCE = 1e-4
"""Largest relative RMS between PyTorch and the folded graph; float32 rounding alone stays below 1e-5."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The network, ready for calibration and quantization."""

    graph: onnx.ModelProto
    """Folded fp32 graph, canonically named."""
    name: str
    depth: int | None
    residual_adds: int
    class_count: int
    class_names: tuple[str, ...] | None
    """From ``--classes`` or ImageNet's own, if known."""
    checkpoint: CheckpointRef
    preprocess: Preprocess
    is_imagenet: bool
    """An ImageNet ResNet with 1,000 classes, which can be calibrated on the built-in photographs."""
    random: bool
    """Random weights, which are good for timing only."""
    preprocess_assumed: bool = False
    """Whether neither the user nor the weights' origin says how pixels are normalized."""
    remarks: tuple[str, ...] = ()
    """Sentences about the network's origin and form."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about this network."""
        if not self.random:
            return self.remarks
        return (
            *self.remarks,
            "the weights are random: this engine is for timing, and its accuracy means nothing",
        )


def open_source(config: ModelConfig, progress: Progress) -> Source:
    """Load, export and fold the network of ``config``.

    Raises:
        UsageError: unknown model, or options that do not fit it.
        CheckpointError, DownloadError, GraphError: the weights or the graph cannot be used.
    """
    return _from_onnx(config, config.onnx) if config.onnx is not None else _from_weights(config, progress)


def _from_weights(config: ModelConfig, progress: Progress) -> Source:
    from rescompile.graph.export import export

    spec, model, checkpoint, default, remarks = _network(config, progress)
    preprocess = config.preprocess.apply(default, channels=model.conv1.in_channels)
    graph = fold(export(model, image_size=preprocess.size))
    _check_export(model, graph, preprocess.size)
    classes = model.fc.out_features
    is_imagenet = spec.family == "imagenet" and classes == IMAGENET_CLASSES
    return Source(
        graph=graph,
        name=spec.name,
        depth=spec.depth,
        residual_adds=spec.residual_adds,
        class_count=classes,
        class_names=_class_names(config.classes, classes, is_imagenet=is_imagenet),
        checkpoint=checkpoint,
        preprocess=preprocess,
        is_imagenet=is_imagenet,
        random=config.weights == "random",
        preprocess_assumed=config.weights not in PRETRAINED and not config.preprocess.states_normalization,
        remarks=remarks,
    )


def _network(
    config: ModelConfig, progress: Progress
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
    loaded = checkpoints.load_checkpoint(path, config.entry)
    remarks = loaded.notes
    if spec is None:
        spec = with_options(checkpoints.spec_of(loaded))
        remarks = (*remarks, NO_TRACE.format(spec.name))
    model = checkpoints.build_model(spec, loaded)
    preprocess = pretrained.pretrained_preprocess(spec, version) if version else spec.preprocess
    return spec, model, CheckpointRef(loaded.sha256, loaded.source), preprocess, remarks


def _check_export(model: ResNet, graph: onnx.ModelProto, size: tuple[int, int]) -> None:
    """Refuse an exported and folded graph that does not compute what PyTorch computes."""
    import torch

    images = np.random.default_rng(0).standard_normal((2, model.conv1.in_channels, *size), dtype=np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    found = reference_session(graph.SerializeToString(), optimize=True)(images)
    if not np.isfinite(expected).all():
        raise CheckpointError(
            "the network's logits are not finite: the weights overflow, so check the checkpoint"
        )
    error = relative_rms(expected, found)
    if not error <= EXPORT_TOLERANCE:
        raise GraphError(
            f"the exported graph differs from PyTorch by {error:.2g} (relative RMS of logits, at most "
            f"{EXPORT_TOLERANCE:g}): a batch norm with a vanishing variance is the usual cause"
        )


def _from_onnx(config: ModelConfig, path: Path) -> Source:
    named, structure = recognise(simplify(read_onnx(path)))
    size = structure.image_size
    if config.preprocess.crop not in (None, size):
        raise UsageError(
            f"--crop {config.preprocess.crop} does not fit {path}, whose input is {size} pixels wide"
        )
    default = IMAGENET if structure.has_maxpool else CIFAR
    is_imagenet = structure.has_maxpool and structure.classes == IMAGENET_CLASSES
    return Source(
        graph=fold(named),
        name=_name_of(structure),
        depth=structure.depth,
        residual_adds=sum(structure.blocks_per_stage),
        class_count=structure.classes,
        class_names=_class_names(config.classes, structure.classes, is_imagenet=is_imagenet),
        checkpoint=CheckpointRef(sha256_of_onnx(path), text_of(path.name)),
        preprocess=replace(config.preprocess, crop=size).apply(default),
        is_imagenet=is_imagenet,
        random=False,
        preprocess_assumed=not config.preprocess.states_normalization,
    )


def _name_of(structure: Structure) -> str:
    """The registry's name where the structure is one of its networks, else a name with its depth."""
    block = "bottleneck" if structure.convs_per_block == 3 else "basic"
    if not structure.has_maxpool:
        return f"resnet{structure.depth}-cifar" + ("-bottleneck" if block == "bottleneck" else "")
    spec = IMAGENET_SPECS.get(structure.depth)
    known = spec is not None and (spec.stages, spec.block) == (structure.blocks_per_stage, block)
    return spec.name if spec is not None and known else f"resnet{structure.depth}-custom"


def _class_names(path: Path | None, count: int, *, is_imagenet: bool) -> tuple[str, ...] | None:
    if path is not None:
        return read_class_names(path, count)
    return imagenet_class_names() if is_imagenet else None
