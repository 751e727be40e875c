"""The options that several commands share, in the groups of the configuration."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rescompile.errors import UsageError

if TYPE_CHECKING:
    from rescompile.config import CalibrationConfig, ModelConfig
    from rescompile.report import Limits
    from rescompile.sources.preprocess_options import PreprocessOptions

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]
Directory = Annotated[Path, typer.Argument(help="Engine directory, the --output of a build.", metavar="DIR")]
_SKIP = "Leave damaged images out instead of stopping."
TrustedKeys = Annotated[
    list[Path] | None,
    typer.Option(
        "--trusted-key",
        metavar="FILE",
        help="Load the engine only if the owner of this public key signed it; repeat it for several keys.",
    ),
]
SkipUnreadable = Annotated[bool, typer.Option("--skip-unreadable", help=_SKIP)]


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel, metavar=metavar)


_SUFFIXES = (".pth", ".th", ".pt", ".ckpt", ".bin", ".safetensors")
"""Ends of file names, by which a file that does not exist is told from the name of a network."""
_SIDE = re.compile(r"-?[0-9]{1,9}")
_network = partial(_option, "Network")
_preprocessing = partial(_option, "Preprocessing")
_calibration = partial(_option, "Calibration")
_method = partial(_option, "Calibration methods")
_verdict = partial(_option, "Verdict")
_engine = partial(_option, "Engine")


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


@dataclass(frozen=True)
class PreprocessingOptions:
    """Changes to the network's own preprocessing."""

    resize: Annotated[
        str | None,
        _preprocessing(
            "Resize the shorter side to N pixels, or to HxW without keeping the ratio; 0: do not resize."
        ),
    ] = None
    crop: Annotated[
        str | None,
        _preprocessing(
            "Side N or size HxW of the centre crop in pixels, which is the network's input.",
            "--crop",
            "--size",
        ),
    ] = None
    crop_pct: Annotated[
        float | None,
        _preprocessing("Resize the shorter side to the crop divided by this, as timm does: 0.95."),
    ] = None
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic"] | None, _preprocessing("Filter for resizing.")
    ] = None
    mean: Annotated[
        str | None,
        _preprocessing(
            "Mean of each channel in [0, 1], such as 0.485,0.456,0.406; or a mean image of pixel values of 0 to 255 "
            "(.npy, .npz, Caffe's binaryproto).",
            metavar="NUMBERS|FILE",
        ),
    ] = None
    std: Annotated[
        str | None,
        _preprocessing(
            "Standard deviation of each channel in [0, 1], such as 0.229,0.224,0.225. Default with a mean image: 1.",
            metavar="NUMBERS",
        ),
    ] = None
    color: Annotated[
        Literal["RGB", "BGR", "GRAY", "RGBA"] | None, _preprocessing("Channels that the network expects.")
    ] = None

    def config(self) -> PreprocessOptions:
        """These options as configuration."""
        from rescompile.sources.preprocess_options import PreprocessOptions

        return PreprocessOptions(
            resize=_size(self.resize, "--resize"),
            crop=_size(self.crop, "--crop"),
            crop_pct=self.crop_pct,
            interpolation=self.interpolation,
            mean=_mean(self.mean),
            std=_numbers(self.std, "--std"),
            color=self.color,
        )


@dataclass(frozen=True)
class CalibrationOptions:
    """The images and methods that choose INT8 scales."""

    calibration_set: Annotated[
        Path | None,
        _calibration("Images to choose INT8 scales with: a folder or .npz; labels are not needed."),
    ] = None
    calibration_images: Annotated[
        int, _calibration("Use at most this many images of the calibration set (or built-in photographs).")
    ] = 512
    calibration_method: Annotated[
        str | None,
        _calibration(
            "How thresholds are chosen: max, percentile[:99.99], mse, entropy or logit. Default: by --effort, or the "
            "table's own."
        ),
    ] = None
    effort: Annotated[
        Literal["fast", "balanced", "best"] | None,
        _calibration(
            "fast: from histograms alone; balanced (default): also equalizes channels and corrects biases; best: also "
            "learns the rounding of weights.",
        ),
    ] = None
    equalize: Annotated[
        bool | None,
        _method(
            "Equalize the ranges of channels across layers. Default: by --effort.", "--equalize/--no-equalize"
        ),
    ] = None
    bias_correction: Annotated[
        bool | None,
        _method(
            "Change biases to cancel the shift that rounded weights cause. Default: by --effort.",
            "--bias-correction/--no-bias-correction",
        ),
    ] = None
    rounding: Annotated[
        Literal["nearest", "learned"] | None, _calibration("How weights are rounded. Default: by --effort.")
    ] = None
    weight_scales: Annotated[
        Literal["max", "mse"] | None, _calibration("How weight scales are chosen. Default: max.")
    ] = None
    full_range: Annotated[
        bool | None,
        _method(
            "Use all 256 values of int8 after a ReLU, even where that adds channels. Default: by --effort.",
            "--full-range/--no-full-range",
        ),
    ] = None
    skip_unreadable: Annotated[bool, _calibration(_SKIP, "--skip-unreadable")] = False

    def config(self, *, table: Path | None = None, seed: int = 0) -> CalibrationConfig:
        """These options as configuration."""
        from rescompile.config import CalibrationConfig

        return CalibrationConfig(
            images=self.calibration_set,
            table=table,
            method=self.calibration_method,
            effort=self.effort,
            equalize=self.equalize,
            bias_correction=self.bias_correction,
            rounding=self.rounding,
            weight_scales=self.weight_scales,
            full_range=self.full_range,
            limit=self.calibration_images,
            seed=seed,
            skip_unreadable=self.skip_unreadable,
        )


@dataclass(frozen=True)
class VerdictOptions:
    """The images and limits that decide whether an engine passes."""

    validation_set: Annotated[
        Path | None,
        _verdict("Images to compare the engine with the fp32 network on; labels give top-1 accuracy."),
    ] = None
    validation_images: Annotated[
        int | None, _verdict("Use at most this many images of the validation set. Default: all.")
    ] = None
    min_agreement: Annotated[
        float | None, _verdict("Smallest share of images with the fp32 network's top-1 class: 0.97.")
    ] = None
    max_top1_drop: Annotated[
        float | None, _verdict("Largest loss of top-1 accuracy in percentage points: 0.3.", "--max-top1-drop")
    ] = None
    max_relative_rms: Annotated[
        float | None, _verdict("Largest RMS of the logits' error, relative to the RMS of the logits: 0.05.")
    ] = None

    min_top1: Annotated[
        float | None,
        _verdict(
            "Smallest top-1 accuracy of the engine: 0.76. It also finds wrong preprocessing.", "--min-top1"
        ),
    ] = None
    min_cosine: Annotated[
        float | None,
        _verdict(
            "For features: smallest cosine between the engine's and fp32 outputs of one image, such as 0.99."
        ),
    ] = None
    max_error: Annotated[
        float | None, _verdict("For values: largest error of one output in its own unit, such as 0.02.")
    ] = None
    min_speedup: Annotated[
        float | None,
        _verdict(
            "Smallest ratio of the fp32 network's time to the engine's on this machine (CPU engines): 1.5. The limits "
            "above replace the default ones together; this one does not."
        ),
    ] = None

    def limits(self) -> Limits | None:
        """The limits that were asked for, or None without any.

        Raises:
            UsageError: a limit that no engine or every engine meets.
        """
        from rescompile.report import Limits

        asked = {field: getattr(self, field) for field in Limits.__struct_fields__}
        if not any(value is not None for value in asked.values()):
            return None
        _between(self.min_agreement, "--min-agreement", 0.0, 1.0, "it is a share, 0.97 for 97 %")
        _between(self.max_top1_drop, "--max-top1-drop", 0.0, 100.0, "it is in percentage points, 0.3")
        _between(self.min_top1, "--min-top1", 0.0, 1.0, "it is a share, 0.76 for 76 %")
        _between(self.max_relative_rms, "--max-relative-rms", 0.0, 1e6, "it is a ratio, 0.05")
        _between(self.min_cosine, "--min-cosine", -1.0, 1.0, "it is a cosine, 0.99")
        _between(self.max_error, "--max-error", 0.0, math.inf, "it is in the outputs' own unit, 0.02")
        _between(self.min_speedup, "--min-speedup", 0.0, math.inf, "it is a ratio, 1.5")
        return Limits(**asked)


@dataclass(frozen=True)
class EngineOptions:
    """The engine to build."""

    precision: Annotated[Literal["fp32", "fp16", "int8"], _engine("Precision of the engine.")] = "int8"
    task: Annotated[
        Literal["auto", "classes", "binary", "multilabel", "values", "features"],
        _verdict(
            "Meaning of the outputs, by which they are judged and shown: one class of many, one logit that says yes "
            "or no, several labels, numbers, or features. auto: from the head.",
        ),
    ] = "auto"
    fp16_blocks: Annotated[
        str | None,
        _engine(
            "Blocks of an int8 engine that stay in FP16, such as layer1.0,fc; none; or auto: as few as meet the "
            "limits (default with a validation set and --min-agreement or --max-top1-drop).",
        ),
    ] = None
    backend: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx", "triton", "openvino", "onnxruntime"],
        _engine("auto takes TensorRT where it and a GPU are present, else OpenVINO."),
    ] = "auto"
    target: Annotated[
        str | None, _engine("GPU to build for, such as sm_89; triton needs it on machines without a GPU.")
    ] = None
    batch: Annotated[str, _engine("One batch size, or MIN:OPT:MAX.")] = "1:1:32"
    input_format: Annotated[
        Literal["float32-nchw", "uint8-nhwc"],
        _engine("uint8-nhwc builds normalization and layout into the engine.", "--input"),
    ] = "float32-nchw"
    output: Annotated[
        Path | None, _engine("Engine directory to make. Default: MODEL-PRECISION-BACKEND.", "--output", "-o")
    ] = None
    force: Annotated[bool, _engine("Replace an existing engine directory.", "--force")] = False
    no_reference: Annotated[
        bool, _engine("Do not keep the fp32 graph; verify then needs --reference.", "--no-reference")
    ] = False
    no_thumbnails: Annotated[
        bool,
        _engine(
            "Keep no small copies of your images in the report, for confidential ones.", "--no-thumbnails"
        ),
    ] = False


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


def _size(text: str | None, option: str) -> int | tuple[int, int] | None:
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(_SIDE.fullmatch(side) for side in sides):
        raise UsageError(f"{option} {text} is not understood; write a side (224) or height x width (256x128)")
    height, width = int(sides[0]), int(sides[-1])
    # a square crop is one number, but a resize to HxW does not keep the ratio and a resize to one number does
    return height if len(sides) == 1 or (height == width and option == "--crop") else (height, width)


def _mean(text: str | None) -> tuple[float, ...] | Path | None:
    if text is None or all(_is_number(part) for part in text.split(",")):
        return _numbers(text, "--mean")
    path = Path(text)
    # what names no file and does not end like one is rather a slip in the numbers
    if not (path.suffix[1:].isalpha() or path.is_file()):
        return _numbers(text, "--mean")
    return path


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    parts = text.split(",")
    if not all(map(_is_number, parts)):
        raise UsageError(
            f"{option} {text} is not understood; write three numbers, such as 0.485,0.456,0.406, or one for all"
        )
    return tuple(map(float, parts))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _between(value: float | None, option: str, low: float, high: float, meaning: str) -> None:
    if value is not None and not (low <= value <= high and math.isfinite(value)):
        within = f"between {low:g} and {high:g}" if math.isfinite(high) else f"a number of {low:g} or more"
        raise UsageError(f"{option} {value:g} is not {within}; {meaning}")
