"""Opening the network that the user named (a depth, a model, a checkpoint, an ONNX file) as one folded fp32 graph.

The later stages do not depend on where the network came from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from calibration.images import InMemoryImages, open_image_set
from calibration.names import text_of
from calibration.preprocess import CIFAR, IMAGENET, Preprocess, normalize, size_words
from rescompile.building.fidelity import (
    MOST_TOLERANCE,
    Answers,
    check_against_file,
    check_against_function,
    check_at_sizes,
    file_answers,
    size_tolerance,
)
from rescompile.config import ModelConfig
from rescompile.errors import UsageError
from rescompile.graph.fold import fold
from rescompile.graph.placement import place
from rescompile.graph.simplify import Simplified, simplify
from rescompile.graph.structure import ResNetForm, structure
from rescompile.manifest import CheckpointRef, OutputKind
from rescompile.models.registry import IMAGENET_SPECS
from rescompile.progress import Progress
from rescompile.sources.class_names import imagenet_class_names, read_class_names
from rescompile.sources.ensemble import ensemble_of
from rescompile.sources.framework_files import read_framework_file
from rescompile.sources.network import SourceNetwork
from rescompile.sources.onnx_file import read_onnx, sha256_of_onnx
from rescompile.sources.preprocess_options import PreprocessOptions
from rescompile.sources.schemes import has_scheme
from rescompile.sources.trained import Trained, read_trained

if TYPE_CHECKING:
    from rescompile.models.planned import Plan
    from rescompile.models.resnet import ResNet
    from rescompile.models.specification import ModelSpec
    from rescompile.sources.checkpoint import Weights

_Sets = Sequence[Path | InMemoryImages | None]
IMAGENET_CLASSES = 1000
PRETRAINED: dict[str, Literal["v1", "v2"]] = {"pretrained": "v1", "pretrained-v2": "v2"}
"""torchvision's two training recipes; other tools publish INT8 figures for the first."""
NO_TRACE = (
    "the weights alone were read as a usual {}: dilation, padding modes and pools leave no trace in them; if the "
    "network differs there, pass it with --onnx, or the live module to rescompile.build"
)
TRIAL_IMAGES = 200
"""Labelled images on which readings of weights are tried."""
SMALL_IMAGE = 64
"""Networks of other families that take images of at most this side are trained on whole small images, as CIFAR's."""


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
    """Meaning of the first output."""
    other_kinds: tuple[OutputKind, ...] = ()
    """Meaning of the other outputs."""
    kind_reason: str = ""
    told_kind: tuple[OutputKind, str] | None = None
    """Meaning of the first output by the network's own configuration, and where that is."""
    preprocess_assumed: bool = False
    """Whether neither the user nor the weights' origin says how pixels are normalized."""
    endings: tuple[str | None, ...] = (None,)
    """For every output the operator that was taken off its end: Softmax, LogSoftmax, Sigmoid."""
    remarks: tuple[str, ...] = ()
    """Sentences about the network's origin and form."""
    members: tuple[Source, ...] = ()
    """The networks of an ensemble."""
    calibration: Path | None = None
    """Images or a calibration table that came along with the weights, for want of the user's."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about this network."""
        if not self.random:
            return self.remarks
        return (
            *self.remarks,
            "the weights are random: this engine is for timing, and its accuracy means nothing",
        )


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
        source = _from_weights(config, progress, None)
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
        return _from_weights(config, progress, weights)
    trial = Trial(images=partial(_labelled_images, config, labelled), stride_on=config.stride_on)
    crop = config.preprocess.crop
    try:
        network = open_foreign(weights, trial, (crop, crop) if isinstance(crop, int) else crop)
    except UnknownFormError:
        if weights.spec is None:
            raise
        # almost a network of the registry: what is missing from it says more
        return _from_weights(config, progress, weights)
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


def _from_weights(config: ModelConfig, progress: Progress, weights: Weights | None) -> Source:
    from rescompile.graph.export import export

    spec, model, checkpoint, default, remarks = _network(config, progress, weights)
    if spec.pre_activation:
        return _traced(config, spec, model, checkpoint, remarks)
    preprocess = config.preprocess.apply(default, channels=model.conv1.in_channels)
    graph = place(fold(export(model, image_size=preprocess.size)))
    check_against_function(graph, partial(_answers, model), None)
    _check_sizes(graph, config, preprocess, lambda: [lambda images: [_answers(model, images)]])
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


def _onnx_network(path: Path) -> SourceNetwork:
    return SourceNetwork(
        graph=read_onnx(path),
        name=path.stem,
        checkpoint=CheckpointRef(sha256_of_onnx(path), text_of(path.name)),
    )


def source_of(network: SourceNetwork, config: ModelConfig) -> Source:
    """The network that another framework exported, ready for calibration and quantization.

    Raises:
        UsageError: a size that does not fit the network.
        GraphError: the graph cannot be read, or our form of it does not compute what the network computes.
    """
    options = config.preprocess
    asked = (
        options.crop if options.crop is not None or network.preprocess is None else network.preprocess.crop
    )
    simplified = simplify(network.graph, size=(asked, asked) if isinstance(asked, int) else asked)
    names = tuple(output.name for output in network.graph.graph.output)
    named, found = structure(fold(simplified.graph), names)
    graph = place(named)
    check_against_file(graph, network.graph, simplified.intake, found.origins, simplified.range)
    if network.reference is not None:
        check_against_function(graph, network.reference, simplified.range)
    channels, height, width = _image_shape(graph)
    if options.crop not in (None, height, (height, width)):
        raise UsageError(
            f"--crop {size_words(options.crop)} does not fit {network.checkpoint.source}, whose input is "
            f"{size_words(height if height == width else (height, width))} pixels wide"
        )
    default, origin = _preprocess_of(network, simplified, found.form, channels, (height, width))
    size = height if height == width else (height, width)
    preprocess = replace(options, crop=size).apply(default, channels=channels)
    whole = partial(file_answers, network.graph, graph, simplified.intake, found.origins)
    _check_sizes(
        graph, config, preprocess, partial(_references, network, whole),
        simplified.range, tolerance=size_tolerance(network.graph),
    )  # fmt: skip
    classes = _class_count(graph)
    is_imagenet = (
        classes == IMAGENET_CLASSES and channels == 3 and (found.form is None or found.form.has_maxpool)
    )
    given = network.class_names if config.classes is None else None
    return Source(
        graph=graph,
        name=_name_of(found.form)
        if found.form is not None and config.onnx is not None
        else _plain(network.name),
        depth=None if found.form is None else found.form.depth,
        residual_adds=found.residual_adds,
        class_count=classes,
        class_names=given or _class_names(config.classes, classes, is_imagenet=is_imagenet),
        checkpoint=network.checkpoint,
        preprocess=preprocess,
        is_imagenet=is_imagenet,
        random=config.weights == "random",
        preprocess_assumed=origin is None and not options.states_normalization,
        endings=simplified.endings,
        told_kind=None if network.kind is None else (network.kind, f"as {network.kind_from} says"),
        remarks=(
            *network.notes,
            *simplified.notes,
            *((f"preprocessing comes from {origin}",) if origin and not options.states_normalization else ()),
        ),
    )


def _check_sizes(
    graph: onnx.ModelProto,
    config: ModelConfig,
    preprocess: Preprocess,
    references: Callable[[], Sequence[Answers]],
    limit: float | None = None,
    *,
    tolerance: float = MOST_TOLERANCE,
) -> None:
    """Refuse sizes that the network does not take, or that its own size is not among; nothing where there is one."""
    sizes = config.sizes
    if sizes is None:
        return
    if not sizes.holds(preprocess.size):
        raise UsageError(
            f"--dynamic-size {sizes} leaves out {size_words(preprocess.crop)}, the size that the engine is calibrated "
            "and tuned for; widen it, or pass another --size"
        )
    if preprocess.mean_image:
        raise UsageError(
            "a mean image has one size; leave --dynamic-size out, or pass a mean of each channel (--mean)"
        )
    check_at_sizes(graph, sizes, references(), limit, tolerance)


def _references(network: SourceNetwork, whole: Callable[[], Answers]) -> list[Answers]:
    """What our graph is compared with: a program's own module, and its file where that alone has all outputs."""
    module = network.reference
    if module is None:
        return [whole()]
    own: list[Answers] = [lambda images: [np.asarray(module(images))]]
    return [*own, whole()] if len(network.graph.graph.output) > 1 else own


def _image_shape(graph: onnx.ModelProto) -> tuple[int, int, int]:
    _, channels, height, width = graph.graph.input[0].type.tensor_type.shape.dim
    return channels.dim_value, height.dim_value, width.dim_value


def _class_count(graph: onnx.ModelProto) -> int:
    """Values that the first output has for each image; its channels where it is a map."""
    dims = graph.graph.output[0].type.tensor_type.shape.dim
    return dims[1].dim_value if len(dims) > 1 else 1


def _preprocess_of(
    network: SourceNetwork,
    simplified: Simplified,
    form: ResNetForm | None,
    channels: int,
    size: tuple[int, int],
) -> tuple[Preprocess, str | None]:
    """The network's own preprocessing, and where it is from; None where it is only assumed."""
    if network.preprocess is not None:
        return network.preprocess, network.preprocess_from or "the network's own configuration"
    default = CIFAR if (max(size) <= SMALL_IMAGE if form is None else not form.has_maxpool) else IMAGENET
    # the same proportion of the photograph, or all of it where the input is not square
    default = PreprocessOptions(crop=size[0] if size[0] == size[1] else size).apply(default)
    if simplified.range is None:
        return default, None
    color = {1: "GRAY", 4: "RGBA"}.get(channels, "RGB")
    unit = 1 / 255 if simplified.range == 255 else 1.0
    raw = msgspec.structs.replace(default, mean=(0.0,) * channels, std=(unit,) * channels, color=color)
    return raw, f"the graph, which takes values from 0 to {simplified.range:g} and normalizes them itself"


def _plain(name: str) -> str:
    """``name`` as a part of a folder's name."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "network"


def _name_of(form: ResNetForm) -> str:
    """The registry's name where the form is one of its networks, else a name with its depth."""
    block = "bottleneck" if form.convs_per_block == 3 else "basic"
    if not form.has_maxpool:
        return f"resnet{form.depth}-cifar" + ("-bottleneck" if block == "bottleneck" else "")
    spec = IMAGENET_SPECS.get(form.depth)
    known = spec is not None and (spec.stages, spec.block) == (form.blocks_per_stage, block)
    usual = form.plain_width and form.width == 64
    return spec.name if spec is not None and known and usual else f"resnet{form.depth}-custom"


def _class_names(
    given: Path | tuple[str, ...] | None, count: int, *, is_imagenet: bool
) -> tuple[str, ...] | None:
    if given is not None:
        return read_class_names(given, 2 if count == 1 else count)  # one logit decides between two classes
    return imagenet_class_names() if is_imagenet else None
