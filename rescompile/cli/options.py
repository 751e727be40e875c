"""The options of the command line, grouped as the configuration is, each with its help, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from rescompile.errors import UsageError

if TYPE_CHECKING:
    from rescompile.config import CalibrationConfig, ModelConfig, PreprocessOptions
    from rescompile.report import Limits

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of text.")]
Directory = Annotated[Path, typer.Argument(help="Engine directory, the --output of a build.", metavar="DIR")]


def _option(panel: str, text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel)


@dataclass(frozen=True)
class NetworkOptions:
    """Which network, with which weights."""

    depth: Annotated[
        int | None, _option("Network", "ImageNet ResNet of this depth: 18, 34, 50, 101 or 152.")
    ] = None
    model: Annotated[
        str | None,
        _option("Network", "Network by name: resnet101, resnet56-cifar, resnet29-cifar-bottleneck."),
    ] = None
    onnx: Annotated[Path | None, _option("Network", "A float ResNet that was exported to ONNX.")] = None
    weights: Annotated[
        str,
        _option("Network", "Checkpoint (.pth .th .pt .safetensors), or: pretrained, pretrained-v2, random."),
    ] = "pretrained"
    shortcut: Annotated[
        Literal["A", "B"] | None,
        _option("Network", "Shortcut of CIFAR networks; a checkpoint tells by itself."),
    ] = None
    stride_on: Annotated[
        Literal["1x1", "3x3"] | None,
        _option("Network", "Stride of bottlenecks: 3x3 is v1.5 (default), 1x1 is v1."),
    ] = None
    classes: Annotated[Path | None, _option("Network", "Text file with one class name a line.")] = None
    seed: Annotated[int, _option("Network", "Seed of random weights and of the selection of images.")] = 0


@dataclass(frozen=True)
class PreprocessingOptions:
    """Changes to the network's own preprocessing."""

    resize: Annotated[
        int | None, _option("Preprocessing", "Shorter side after resizing; 0 for no resizing.")
    ] = None
    crop: Annotated[int | None, _option("Preprocessing", "Side of the centre crop: the network's input.")] = (
        None
    )
    interpolation: Annotated[
        Literal["nearest", "bilinear", "bicubic"] | None, _option("Preprocessing", "Filter for resizing.")
    ] = None
    mean: Annotated[str | None, _option("Preprocessing", "Mean in [0, 1]: 0.485,0.456,0.406.")] = None
    std: Annotated[str | None, _option("Preprocessing", "Standard deviation: 0.229,0.224,0.225.")] = None
    color: Annotated[Literal["RGB", "BGR"] | None, _option("Preprocessing", "Channel order.")] = None

    def config(self) -> PreprocessOptions:
        """The same as configuration."""
        from rescompile.config import PreprocessOptions

        return PreprocessOptions(
            resize=self.resize,
            crop=self.crop,
            interpolation=self.interpolation,
            mean=_numbers(self.mean, "--mean"),
            std=_numbers(self.std, "--std"),
            color=self.color,
        )


@dataclass(frozen=True)
class CalibrationOptions:
    """Where INT8 scales come from."""

    calibration_set: Annotated[
        Path | None,
        _option("Calibration", "Images that choose the INT8 scales: a folder or .npz; no labels needed."),
    ] = None
    calibration_images: Annotated[
        int, _option("Calibration", "Most images to use of the calibration set, or of the built-in ones.")
    ] = 512
    calibration_method: Annotated[
        str | None,
        _option(
            "Calibration", "max, percentile[:99.99], mse, entropy or logit; the effort's, or a table's own."
        ),
    ] = None
    effort: Annotated[
        Literal["fast", "balanced", "best"] | None,
        _option(
            "Calibration",
            "balanced (default) equalizes channels and corrects biases; best also learns the rounding of weights.",
        ),
    ] = None
    equalize: Annotated[
        bool | None,
        _option("Calibration", "Balance channels across layers; the effort's.", "--equalize/--no-equalize"),
    ] = None
    bias_correction: Annotated[
        bool | None,
        _option(
            "Calibration",
            "Take the mean of the weights' rounding errors away; the effort's.",
            "--bias-correction/--no-bias-correction",
        ),
    ] = None
    rounding: Annotated[
        Literal["nearest", "learned"] | None, _option("Calibration", "Rounding of weights; the effort's.")
    ] = None
    weight_scales: Annotated[
        Literal["max", "mse"] | None, _option("Calibration", "Scales of weights; max unless told.")
    ] = None
    full_range: Annotated[
        bool | None,
        _option(
            "Calibration",
            "Use all 256 values of int8 behind a ReLU, even where channels must be added; the effort's.",
            "--full-range/--no-full-range",
        ),
    ] = None
    skip_unreadable: Annotated[
        bool, _option("Calibration", "Leave damaged images out instead of stopping.", "--skip-unreadable")
    ] = False

    def config(self, *, table: Path | None = None, seed: int = 0) -> CalibrationConfig:
        """The same as configuration."""
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
    """On which images the engine is judged, and what is asked of it."""

    validation_set: Annotated[
        Path | None, _option("Verdict", "Images that decide whether the engine may ship; labels give top-1.")
    ] = None
    validation_images: Annotated[
        int | None, _option("Verdict", "Most images to use of the validation set; all unless told.")
    ] = None
    min_agreement: Annotated[
        float | None, _option("Verdict", "Least share of images with fp32's top-1 class: 0.97.")
    ] = None
    max_top1_drop: Annotated[
        float | None,
        _option("Verdict", "Largest loss of top-1 in percentage points: 0.3.", "--max-top1-drop"),
    ] = None
    max_relative_rms: Annotated[
        float | None, _option("Verdict", "Largest relative RMS of the logits' error: 0.05.")
    ] = None

    def limits(self) -> Limits | None:
        """What was asked, or None where nothing was.

        Raises:
            UsageError: a limit that nothing can keep or everything does.
        """
        from rescompile.report import Limits

        if (self.min_agreement, self.max_top1_drop, self.max_relative_rms) == (None, None, None):
            return None
        _between(self.min_agreement, "--min-agreement", 0.0, 1.0, "it is a share, 0.97 for 97 %")
        _between(self.max_top1_drop, "--max-top1-drop", 0.0, 100.0, "it is in percentage points, 0.3")
        _between(self.max_relative_rms, "--max-relative-rms", 0.0, 1e6, "it is a ratio, 0.05")
        return Limits(
            min_agreement=self.min_agreement,
            max_top1_drop=self.max_top1_drop,
            max_relative_rms=self.max_relative_rms,
        )


@dataclass(frozen=True)
class EngineOptions:
    """What to build."""

    precision: Annotated[Literal["fp32", "fp16", "int8"], _option("Engine", "Precision of the engine.")] = (
        "int8"
    )
    fp16_blocks: Annotated[
        str | None,
        _option(
            "Engine",
            "Blocks of an int8 engine that stay in FP16: layer1.0,fc; auto: as few as keep the limits (default with "
            "--min-agreement or --max-top1-drop and a validation set); none.",
        ),
    ] = None
    backend: Annotated[
        Literal["auto", "tensorrt", "tensorrt-rtx", "triton", "openvino", "onnxruntime"],
        _option("Engine", "auto takes TensorRT where it and a GPU are present, else OpenVINO."),
    ] = "auto"
    target: Annotated[
        str | None, _option("Engine", "GPU to build for, as sm_89; triton needs it where there is no GPU.")
    ] = None
    batch: Annotated[str, _option("Engine", "One batch size, or MIN:OPT:MAX.")] = "1:1:32"
    input_format: Annotated[
        Literal["float32-nchw", "uint8-nhwc"],
        _option("Engine", "uint8-nhwc puts normalization and layout into the engine.", "--input"),
    ] = "float32-nchw"
    output: Annotated[
        Path | None, _option("Engine", "Engine directory to make; MODEL-PRECISION-BACKEND unless told.")
    ] = None
    force: Annotated[bool, _option("Engine", "Replace an engine directory that exists.", "--force")] = False
    no_reference: Annotated[
        bool, _option("Engine", "Leave the fp32 graph out; verify then needs --reference.", "--no-reference")
    ] = False


def model_config(network: NetworkOptions, preprocessing: PreprocessingOptions) -> ModelConfig:
    """Both groups as one configuration.

    Raises:
        UsageError: options that contradict each other.
    """
    from rescompile.config import ModelConfig

    return ModelConfig(
        depth=network.depth,
        model=network.model,
        onnx=network.onnx,
        weights=network.weights,
        shortcut=network.shortcut,
        stride_on=network.stride_on,
        classes=network.classes,
        preprocess=preprocessing.config(),
        seed=network.seed,
    )


def _numbers(text: str | None, option: str) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text} is not understood; write three numbers, as 0.485,0.456,0.406"
        ) from None
    return red, green, blue


def _between(value: float | None, option: str, low: float, high: float, meaning: str) -> None:
    if value is not None and not low <= value <= high:
        raise UsageError(f"{option} {value:g} is not between {low:g} and {high:g}; {meaning}")
