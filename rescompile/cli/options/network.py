"""The network and its weights, and with the preprocessing the configuration of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rescompile.cli.options.preprocessing import PreprocessingOptions
from rescompile.cli.options.shared import option
from rescompile.errors import UsageError

if TYPE_CHECKING:
    from rescompile.config import ModelConfig

_SUFFIXES = (".pth", ".th", ".pt", ".ckpt", ".bin", ".safetensors")
"""Ends of file names, by which a file that does not exist is told from the name of a network."""
_network = partial(option, "Network")


@dataclass(frozen=True)
class NetworkOptions:
    """The network and its weights."""

    depth: Annotated[int | None, _network("ImageNet ResNet of this depth: 18, 34, 50, 101 or 152.")] = None
    model: Annotated[
        str | None,
        _network(
            "Network by name: resnet101, resnet56-cifar, plain34, plain56-cifar, resnet50-preact, "
            "resnet1001-cifar-preact, wrn-28-10, resnext50_32x4d, wide_resnet50_2; timm:NAME, torchvision:NAME, "
            "hf:FOLDER, module:package.file:function."
        ),
    ] = None
    onnx: Annotated[Path | None, _network("ResNet in floating point as an ONNX file.")] = None
    weights: Annotated[
        str,
        _network(
            "Checkpoint (.pth .th .pt .safetensors .h5 .keras .caffemodel .params .pdparams), or: pretrained, "
            "pretrained-v2, random."
        ),
    ] = "pretrained"
    ensemble: Annotated[
        list[str] | None,
        _network(
            "Several networks, each a file as for --weights or a name, whose answers one engine averages: "
            "--ensemble A.safetensors B.th.",
            metavar="FILE...",
        ),
    ] = None
    ensemble_mean: Annotated[
        Literal["probabilities", "logits"], _network("Outputs of the --ensemble networks that are averaged.")
    ] = "probabilities"
    entry: Annotated[
        str | None, _network("Network to take of a checkpoint that holds several, such as ema or encoder_q.")
    ] = None
    shortcut: Annotated[
        Literal["A", "B", "C"] | None,
        _network(
            "Shortcuts: A pads with zero channels, B projects where a block changes shape, C in every block. A "
            "checkpoint implies it."
        ),
    ] = None
    stride_on: Annotated[
        Literal["1x1", "3x3"] | None,
        _network("Bottleneck convolution with the stride: 3x3 (v1.5, default) or 1x1 (v1)."),
    ] = None
    classes: Annotated[Path | None, _network("Text file with one class name per line.")] = None
    outputs: Annotated[
        str | None,
        _network(
            "Return inner modules of --model timm:NAME and the like: c2,c3,c4,c5, or PyTorch's names.",
            metavar="NAMES",
        ),
    ] = None
    seed: Annotated[int, _network("Seed of random weights and of the choice of images.")] = 0


def model_config(
    network: NetworkOptions, preprocessing: PreprocessingOptions, more: Sequence[str] = ()
) -> ModelConfig:
    """The two groups as one configuration; ``more`` are further networks of the ensemble.

    Raises:
        UsageError: options that contradict each other.
    """
    from rescompile.config import ModelConfig

    if more and not network.ensemble:
        raise UsageError(f"{more[0]} does not belong to an option; pass several networks as --ensemble A B")
    members = []
    for name in (*(network.ensemble or ()), *more):
        alone = replace(network, ensemble=None, depth=None, outputs=None, **_named(name))
        members.append(model_config(alone, preprocessing))
    return ModelConfig(
        members=tuple(members),
        ensemble_mean=network.ensemble_mean,
        depth=network.depth,
        model=network.model,
        onnx=network.onnx,
        weights=network.weights,
        entry=network.entry,
        shortcut=network.shortcut,
        stride_on=network.stride_on,
        classes=network.classes,
        preprocess=preprocessing.config(),
        outputs=tuple(name.strip() for name in network.outputs.split(","))
        if network.outputs is not None
        else (),
        seed=network.seed,
    )


def _named(network: str) -> dict[str, Any]:
    """The options for one network of an ensemble: an ONNX file, another file, or a name."""
    fields: dict[str, Any] = {"model": None, "onnx": None, "weights": "pretrained"}
    if network.endswith(".onnx"):
        return fields | {"onnx": Path(network)}
    is_file = Path(network).exists() or Path(network).suffix in _SUFFIXES
    return fields | ({"weights": network} if is_file else {"model": network})
