"""From what the user named (a depth, a model, a checkpoint, an ONNX file) to one folded fp32 graph.

Everything after this stage is the same, whatever the network came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from calibration.names import text_of
from calibration.preprocess import CIFAR, IMAGENET, Preprocess
from rescompile.config import ModelConfig
from rescompile.errors import CheckpointError, GraphError, UsageError
from rescompile.files import sha256_of
from rescompile.manifest import CheckpointRef
from rescompile.progress import Progress

if TYPE_CHECKING:
    import onnx

    from rescompile.graph.recognise import Structure
    from rescompile.models.resnet import ResNet
    from rescompile.models.specification import ModelSpec

IMAGENET_CLASSES = 1000
_PRETRAINED: dict[str, Literal["v1", "v2"]] = {"pretrained": "v1", "pretrained-v2": "v2"}
"""torchvision's two training recipes; the first is the one that other tools publish INT8 figures for."""
_EXPORT_TOLERANCE = 1e-4
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
    """From ``--classes`` or ImageNet's own; None where neither says."""
    checkpoint: CheckpointRef
    preprocess: Preprocess
    is_imagenet: bool
    """An ImageNet ResNet with 1,000 classes, for which the built-in photographs can stand in."""
    random: bool
    """Random weights: good for timing, no use for accuracy."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user must be told about these weights."""
        return (
            "the weights are random: this engine is for timing, and its accuracy means nothing",
        ) * self.random


def open_source(config: ModelConfig, progress: Progress) -> Source:
    """Load, export and fold the network of ``config``.

    Raises:
        UsageError: unknown model, or options that do not fit it.
        CheckpointError, DownloadError, GraphError: the weights or the graph cannot be used.
    """
    return _from_onnx(config, config.onnx) if config.onnx is not None else _from_weights(config, progress)


def _from_weights(config: ModelConfig, progress: Progress) -> Source:
    from rescompile.graph.export import export
    from rescompile.graph.fold import fold

    spec, model, checkpoint, default = _network(config, progress)
    preprocess = config.preprocess.apply(default)
    graph = fold(export(model, image_size=preprocess.crop))
    _check_export(model, graph, preprocess.crop)
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
    )


def _network(config: ModelConfig, progress: Progress) -> tuple[ModelSpec, ResNet, CheckpointRef, Preprocess]:
    """The network in PyTorch, where its weights came from, and the preprocessing it expects."""
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
    version = _PRETRAINED.get(config.weights)
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


def _check_export(model: ResNet, graph: onnx.ModelProto, size: int) -> None:
    """PyTorch is the reference of the model: what was exported and folded must compute the same."""
    import torch

    from rescompile.backends.onnxruntime import reference_session
    from rescompile.metrics import relative_rms

    images = np.random.default_rng(0).standard_normal((2, 3, size, size), dtype=np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    found = reference_session(graph.SerializeToString(), optimize=True)(images)
    if not np.isfinite(expected).all():
        raise CheckpointError(
            "the network's logits are not finite: the weights overflow, so check the checkpoint"
        )
    error = relative_rms(expected, found)
    if not error <= _EXPORT_TOLERANCE:
        raise GraphError(
            f"the exported graph differs from PyTorch by {error:.2g} (relative RMS of logits, at most "
            f"{_EXPORT_TOLERANCE:g}): a batch norm with a vanishing variance is the usual cause"
        )


def _from_onnx(config: ModelConfig, path: Path) -> Source:
    from rescompile.graph.fold import fold
    from rescompile.graph.recognise import recognise
    from rescompile.graph.simplify import simplify

    named, structure = recognise(simplify(_read_onnx(path)))
    graph = fold(named)
    default = IMAGENET if structure.has_maxpool else CIFAR
    size = structure.image_size
    if config.preprocess.crop not in (None, size):
        raise UsageError(
            f"--crop {config.preprocess.crop} does not fit {path}, whose input is {size} pixels wide"
        )
    scaled = None if default.resize is None else round(default.resize * size / default.crop)
    preprocess = config.preprocess.apply(_resized(default, scaled, size))
    is_imagenet = structure.has_maxpool and structure.classes == IMAGENET_CLASSES
    return Source(
        graph=graph,
        name=_name_of(structure),
        depth=structure.depth,
        residual_adds=sum(structure.blocks_per_stage),
        class_count=structure.classes,
        class_names=_class_names(config.classes, structure.classes, is_imagenet=is_imagenet),
        checkpoint=CheckpointRef(_sha256(path), text_of(path.name)),
        preprocess=preprocess,
        is_imagenet=is_imagenet,
        random=False,
    )


def _resized(default: Preprocess, resize: int | None, crop: int) -> Preprocess:
    import msgspec

    return msgspec.structs.replace(default, resize=resize, crop=crop)


def _read_onnx(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except FileNotFoundError as error:
        missing = error.filename or path
        raise GraphError(f"{missing} does not exist; check the path given to --onnx") from None
    except OSError as error:
        raise GraphError(f"{path} cannot be read ({error.strerror or error}); check the file") from None
    except (DecodeError, onnx.checker.ValidationError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise GraphError(f"{path} is no valid ONNX model ({reason}); export it again") from None
    return model


def _sha256(path: Path) -> str:
    """SHA-256 of the file and of the files that hold its weights, if it keeps them outside."""
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    outline = onnx.load(path, load_external_data=False)
    outside = {
        ExternalDataInfo(tensor).location
        for tensor in outline.graph.initializer
        if uses_external_data(tensor)
    }
    return sha256_of(path, *(path.parent / name for name in sorted(outside)))


def _name_of(structure: Structure) -> str:
    """The registry's name where the structure is one of its networks, else its depth."""
    from rescompile.models.registry import IMAGENET_SPECS

    block = "bottleneck" if structure.convs_per_block == 3 else "basic"
    if not structure.has_maxpool:
        return f"resnet{structure.depth}-cifar" + ("-bottleneck" if block == "bottleneck" else "")
    spec = IMAGENET_SPECS.get(structure.depth)
    known = spec is not None and (spec.stages, spec.block) == (structure.blocks_per_stage, block)
    return spec.name if spec is not None and known else f"resnet{structure.depth}-custom"


def _class_names(path: Path | None, count: int, *, is_imagenet: bool) -> tuple[str, ...] | None:
    if path is None:
        if not is_imagenet:
            return None
        text = resources.files("rescompile").joinpath("data/imagenet_classes.txt").read_text("utf-8")
        return tuple(text.splitlines())
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except FileNotFoundError:
        raise UsageError(
            f"{path} does not exist; --classes takes a text file with one class name a line"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read as text ({error}); --classes takes one class name a line"
        ) from None
    if len(names) != count:
        raise UsageError(f"{path} names {len(names)} classes, the network has {count}; write one name a line")
    return names
