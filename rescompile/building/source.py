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
from rescompile.manifest import CheckpointRef, OutputKind
from rescompile.metrics import relative_rms
from rescompile.models.registry import IMAGENET_SPECS
from rescompile.progress import Progress
from rescompile.sources.class_names import imagenet_class_names, read_class_names
from rescompile.sources.framework_files import read_framework_file
from rescompile.sources.network import Reference, SourceNetwork
from rescompile.sources.onnx_file import read_onnx, sha256_of_onnx
from rescompile.sources.schemes import has_scheme

if TYPE_CHECKING:
    from rescompile.models.resnet import ResNet
    from rescompile.models.specification import ModelSpec

IMAGENET_CLASSES = 1000
PRETRAINED: dict[str, Literal["v1", "v2"]] = {"pretrained": "v1", "pretrained-v2": "v2"}
"""torchvision's two training recipes; other tools publish INT8 figures for the first."""
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
    kind: OutputKind = "classes"
    """Meaning of the output."""
    kind_reason: str = ""
    preprocess_assumed: bool = False
    """Whether neither the user nor the weights' origin says how pixels are normalized."""
    origin_notes: tuple[str, ...] = ()
    """What the network's origin has to say, such as where its preprocessing was read."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about these weights."""
        if not self.random:
            return self.origin_notes
        return (
            *self.origin_notes,
            "the weights are random: this engine is for timing, and its accuracy means nothing",
        )


def open_source(config: ModelConfig, progress: Progress) -> Source:
    """Load, export and fold the network of ``config``.

    Raises:
        UsageError: unknown model, or options that do not fit it.
        CheckpointError, DownloadError, GraphError: the weights or the graph cannot be used.
    """
    network = config.network or _brought(config)
    if network is not None:
        return _from_network(config, network)
    return _from_weights(config, progress)


def _brought(config: ModelConfig) -> SourceNetwork | None:
    """The network of an ONNX file, of another framework's file or of an optional package, if that was asked."""
    crop = config.preprocess.crop
    size = (crop, crop) if isinstance(crop, int) else crop
    if config.onnx is not None:
        graph = read_onnx(config.onnx)
        checkpoint = CheckpointRef(sha256_of_onnx(config.onnx), text_of(config.onnx.name))
        return SourceNetwork(graph=graph, name=config.onnx.stem, checkpoint=checkpoint)
    if config.model is not None and has_scheme(config.model):
        from rescompile.sources.packages import open_named

        return open_named(config.model, config.weights, size=size, seed=config.seed)
    if config.depth is None and config.model is None and config.weights not in (*PRETRAINED, "random"):
        return read_framework_file(Path(config.weights), size)
    return None


def _from_weights(config: ModelConfig, progress: Progress) -> Source:
    from rescompile.graph.export import export
    from rescompile.sources.modules import reference_of

    spec, model, checkpoint, default = _network(config, progress)
    preprocess = config.preprocess.apply(default, channels=model.conv1.in_channels)
    graph = fold(export(model, image_size=preprocess.size))
    _check_export(reference_of(model), graph, (preprocess.channels, *preprocess.size))
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
    )


def _network(config: ModelConfig, progress: Progress) -> tuple[ModelSpec, ResNet, CheckpointRef, Preprocess]:
    """The network in PyTorch, the origin of its weights, and the preprocessing it expects."""
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
        return spec, model, CheckpointRef(digest, f"random, seed {config.seed}"), spec.preprocess
    version = PRETRAINED.get(config.weights)
    if version is None:
        path = Path(config.weights)
    else:
        assert spec is not None
        path = pretrained.fetch_pretrained(spec, version, progress=progress.advanced)
    loaded = checkpoints.load_checkpoint(path)
    if spec is None:
        spec = with_options(checkpoints.spec_of(loaded))
    model = checkpoints.build_model(spec, loaded)
    preprocess = pretrained.pretrained_preprocess(spec, version) if version else spec.preprocess
    return spec, model, CheckpointRef(loaded.sha256, loaded.source), preprocess


def _check_export(reference: Reference, graph: onnx.ModelProto, shape: tuple[int, ...]) -> None:
    """Refuse an exported and folded graph that does not compute what its ``reference`` computes."""
    images = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    expected = reference(images)
    found = reference_session(graph.SerializeToString(), optimize=True)(images)
    if not np.isfinite(expected).all():
        raise CheckpointError(
            "the network's logits are not finite: the weights overflow, so check the checkpoint"
        )
    error = relative_rms(expected, found)
    if not error <= EXPORT_TOLERANCE:
        raise GraphError(
            f"the exported graph differs from the original by {error:.2g} (relative RMS of logits, at most "
            f"{EXPORT_TOLERANCE:g}): a batch norm with a vanishing variance is the usual cause"
        )


def _from_network(config: ModelConfig, network: SourceNetwork) -> Source:
    named, structure = recognise(simplify(network.graph))
    size = structure.image_size
    if config.preprocess.crop not in (None, size):
        raise UsageError(
            f"--crop {config.preprocess.crop} does not fit {network.checkpoint.source}, whose input is {size} pixels "
            "wide"
        )
    default = network.preprocess or (IMAGENET if structure.has_maxpool else CIFAR)
    is_imagenet = structure.has_maxpool and structure.classes == IMAGENET_CLASSES
    named_classes = network.class_names if len(network.class_names or ()) == structure.classes else None
    graph = fold(named)
    preprocess = replace(config.preprocess, crop=size).apply(default)
    if network.reference is not None:
        _check_export(network.reference, graph, (preprocess.channels, *preprocess.size))
    return Source(
        graph=graph,
        name=_name_of(structure) if config.onnx is not None else network.name,
        depth=structure.depth,
        residual_adds=sum(structure.blocks_per_stage),
        class_count=structure.classes,
        class_names=(named_classes if config.classes is None else None)
        or _class_names(config.classes, structure.classes, is_imagenet=is_imagenet),
        checkpoint=network.checkpoint,
        preprocess=preprocess,
        is_imagenet=is_imagenet,
        random=config.weights == "random",
        preprocess_assumed=network.preprocess is None and not config.preprocess.states_normalization,
        origin_notes=network.all_notes,
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
        # one logit decides between two classes
        return read_class_names(path, 2 if count == 1 else count)
    return imagenet_class_names() if is_imagenet else None
