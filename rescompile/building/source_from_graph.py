"""A source from the graph that another framework exported, after it was checked against the original."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import onnx

from calibration.preprocess import CIFAR, IMAGENET, Preprocess, size_words
from rescompile.building.fidelity import (
    check_against_file,
    check_against_function,
    file_answers,
    size_tolerance,
)
from rescompile.building.size_check import check_sizes
from rescompile.building.source import IMAGENET_CLASSES, Source, class_names_of
from rescompile.config import ModelConfig
from rescompile.errors import UsageError
from rescompile.graph.fold import fold
from rescompile.graph.placement import place
from rescompile.graph.simplify import Simplified, simplify
from rescompile.graph.simplify.ends import Intake, with_endings
from rescompile.graph.structure import ResNetForm, structure
from rescompile.models.registry import IMAGENET_SPECS
from rescompile.sources.network import Reference, SourceNetwork
from rescompile.sources.preprocess_options import PreprocessOptions

SMALL_IMAGE = 64
"""Networks of other families that take images of at most this side are trained on whole small images, as CIFAR's."""


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
    module = None if network.reference is None else _taking(network.reference, simplified.intake)
    ended = with_endings(graph, simplified.endings)
    if module is not None:
        check_against_function(ended, module, simplified.range)
    channels, height, width = _image_shape(graph)
    if options.crop not in (None, height, (height, width)):
        raise UsageError(
            f"--crop {size_words(options.crop)} does not fit {network.checkpoint.source}, whose input is "
            f"{size_words(height if height == width else (height, width))} pixels wide"
        )
    default, origin = _preprocess_of(network, simplified, found.form, channels, (height, width))
    size = height if height == width else (height, width)
    preprocess = replace(options, crop=size).apply(default, channels=channels)
    check = partial(
        check_sizes, config=config, preprocess=preprocess, limit=simplified.range,
        tolerance=size_tolerance(network.graph),
    )  # fmt: skip
    if module is not None:
        check(ended, references=lambda: [lambda images: [module(images)]])
    if module is None or len(names) > 1:  # a module's reference is its first answer
        whole = partial(file_answers, network.graph, graph, simplified.intake, found.origins)
        check(graph, references=lambda: [whole()])
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
        class_names=given or class_names_of(config.classes, classes, is_imagenet=is_imagenet),
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


def _taking(reference: Reference, intake: Intake) -> Reference:
    """``reference`` for images as our graph takes them."""
    return lambda images: np.asarray(reference(intake.of(images)))


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
