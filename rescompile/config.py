"""The configuration of a build, as frozen dataclasses that are validated when they are made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from calibration.errors import CalibrationError
from calibration.images.arrays import InMemoryImages
from calibration.methods.thresholds import check_method
from calibration.preprocess import MAX_SIDE
from rescompile.backends.base import FullRange
from rescompile.errors import UsageError, did_you_mean
from rescompile.manifest import Batch, CpuForm, OutputKind, Precision, SizeRange
from rescompile.report import Limits
from rescompile.sources.name_prefixes import SCHEMES, has_scheme
from rescompile.sources.network import ENSEMBLE_MEANS, EnsembleMean, SourceNetwork
from rescompile.sources.preprocess_options import PreprocessOptions

InputFormat = Literal["float32-nchw", "uint8-nhwc"]
Fp16Blocks = Literal["auto", "none"] | tuple[str, ...]
"""Names of blocks; ``auto`` chooses as few as meet the limits."""

Task = Literal["auto"] | OutputKind
TASKS: tuple[str, ...] = ("auto", *get_args(OutputKind))
CPU_FORMS: tuple[str, ...] = get_args(CpuForm)
PRECISIONS: tuple[str, ...] = get_args(Precision)
INPUT_FORMATS: tuple[str, ...] = get_args(InputFormat)
DEFAULT_CALIBRATION_IMAGES = 512
_SIZE = re.compile(r"([0-9]{1,5})(?:x([0-9]{1,5}))?", re.ASCII)
INT8_THROUGHOUT = ("triton",)
"""Backends whose INT8 engines cannot have blocks in floating point."""

Effort = Literal["fast", "balanced", "best"]
Rounding = Literal["nearest", "learned"]
Validate = Literal["certain", "all"]
VALIDATE: tuple[str, ...] = get_args(Validate)
WeightScales = Literal["max", "mse"]

EFFORTS: tuple[str, ...] = get_args(Effort)
DEFAULT_EFFORT: Effort = "balanced"


@dataclass(frozen=True)
class Recipe:
    """The methods of one calibration."""

    method: str
    """Chooses the thresholds of activations."""
    equalize: bool
    bias_correction: bool
    rounding: Rounding
    weight_scales: WeightScales | Literal["trained"] = "max"
    """``trained``: those of the table, which ``rescompile train --qat`` wrote."""
    full_range: tuple[FullRange, ...] = ()
    """Backends on which zero is stored as -128 where ``topology.full_range_tensors`` allows it."""

    @property
    def needs_gradients(self) -> bool:
        """Whether the logits' sensitivity must be measured."""
        return self.equalize or self.method == "logit"

    @property
    def needs_channels(self) -> bool:
        """Whether every channel needs a histogram and a mean of its own."""
        return self.needs_gradients or self.bias_correction or self.rounding == "learned"


RECIPES: dict[Effort, Recipe] = {
    "fast": Recipe("mse", equalize=False, bias_correction=False, rounding="nearest", full_range=("free",)),
    "balanced": Recipe(
        "logit", equalize=True, bias_correction=True, rounding="nearest", full_range=("free",)
    ),
    "best": Recipe(
        "logit", equalize=True, bias_correction=True, rounding="learned", full_range=("free", "costs")
    ),
}
"""
fast       thresholds from histograms; weights rounded to the nearest, the first convolution's against its pixels; all
           256 values of int8 for what is never negative, where that costs the backend nothing
balanced   also: channels equalized, thresholds by what they do to the logits, biases corrected
best       also: weights rounded against each other, layer by layer; all 256 values wherever the backend can
"""


def parse_batch(text: str) -> Batch:
    """Parse one fixed batch size, ``"8"``, or a range with the size to tune for, ``"1:8:32"``.

    Raises:
        UsageError: not of this form, not positive, or not in ascending order.
    """
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(f"--batch {text} is not understood; write one size (8) or MIN:OPT:MAX (1:8:32)")
    sizes = [int(part) for part in parts] * (3 if len(parts) == 1 else 1)
    low, best, high = sizes
    if not 1 <= low <= best <= high <= 65536:
        raise UsageError(f"--batch {text} must satisfy 1 <= MIN <= OPT <= MAX <= 65536")
    return Batch(low, best, high)


def parse_sizes(text: str | None) -> SizeRange | None:
    """Parse a range of image sizes, ``"160:320"`` or ``"128x160:512x640"``; None means one size.

    Raises:
        UsageError: not of this form, not in ascending order, or a single size.
    """
    if text is None:
        return None
    ends = [_SIZE.fullmatch(part) for part in text.lower().split(":")]
    if len(ends) != 2 or not all(ends):
        raise UsageError(
            f"--dynamic-size {text} is not understood; write MIN:MAX, each a side or HxW (160:320, 128x160:512x640)"
        )
    low, high = ((int(end[1]), int(end[2] or end[1])) for end in ends if end)
    found = SizeRange(low, high)
    if not (min(low) >= 1 and max(high) <= MAX_SIDE and found.holds(high)):
        raise UsageError(
            f"--dynamic-size {text} must satisfy 1 <= MIN <= MAX <= {MAX_SIDE}, in height and in width"
        )
    if low == high:
        raise UsageError(f"--dynamic-size {text} is one size; pass --size {text.split(':')[0]} instead")
    return found


def parse_fp16_blocks(text: str | None) -> Fp16Blocks | None:
    """Parse ``"auto"``, ``"none"``, or names of blocks: ``"layer1.0,layer4.2"``.

    Raises:
        UsageError: an empty name.
    """
    if text is None or text in ("auto", "none"):
        return text  # type: ignore[return-value]
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise UsageError(
            f"--fp16-blocks {text!r} has an empty name; write auto, none, or blocks as layer1.0,layer4.2"
        )
    return names


def one_of(value: str, known: tuple[str, ...], option: str) -> str:
    """Return ``value`` if it is one of ``known``.

    Raises:
        UsageError: it is not; the message names the option, the value and what is known.
    """
    if value not in known:
        hint = did_you_mean(value, list(known))
        raise UsageError(f"{option} {value} is unknown; choose one of {', '.join(known)}.{hint}")
    return value


def positive(count: int | None, option: str) -> None:
    """Refuse a number of images below 1; None means that no number was given.

    Raises:
        UsageError: ``count`` is less than 1.
    """
    if count is not None and count < 1:
        raise UsageError(f"{option} {count} leaves no image; pass 1 or more")


def check_seed(seed: int) -> None:
    """Refuse a negative seed.

    Raises:
        UsageError: ``seed`` is negative.
    """
    if seed < 0:
        raise UsageError(f"--seed {seed} is negative; pass 0 or more")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network, its weights and its preprocessing."""

    depth: int | None = None
    model: str | None = None
    onnx: Path | None = None
    weights: str = "pretrained"
    """``pretrained``, ``pretrained-v2``, ``random``, or the path of a checkpoint."""
    entry: str | None = None
    """The network to take of a checkpoint that holds several, such as ``ema``."""
    shortcut: Literal["A", "B", "C"] | None = None
    stride_on: Literal["1x1", "3x3"] | None = None
    classes: Path | tuple[str, ...] | None = None
    """Text file with one class name per line, or the names."""
    preprocess: PreprocessOptions = field(default_factory=PreprocessOptions)
    seed: int = 0
    sizes: SizeRange | None = None
    """Heights and widths that the engine shall take; None is the one of the preprocessing."""
    outputs: tuple[str, ...] = ()
    """Inner modules to return in place of the network's own answer: ``c2`` to ``c5``, or PyTorch's names."""
    network: SourceNetwork | None = field(default=None, repr=False, compare=False)
    """A network that a program holds, such as ``sources.modules.network_of(module)``."""
    members: tuple[ModelConfig, ...] = ()
    """The networks of an ensemble, in place of one."""
    ensemble_mean: EnsembleMean = "probabilities"
    """Outputs of the members that are averaged."""

    def __post_init__(self) -> None:
        if self.model is not None and ":" in self.model and not has_scheme(self.model):
            schemes = ", ".join(f"{scheme}:" for scheme in SCHEMES)
            raise UsageError(
                f"--model {self.model} begins with none of {schemes}; begin with one of these, or pass a plain name"
            )
        named = [flag for flag, value in self._sources() if value is not None]
        if len(named) > 1:
            raise UsageError(f"{' and '.join(named)} both name the network; pass one of them")
        if self.members:
            self._check_members(named)
        elif not named and self.network is None and self.weights in ("pretrained", "pretrained-v2", "random"):
            raise UsageError(
                "no network was named; pass --depth 101, --model resnet56-cifar, --onnx FILE or --weights FILE"
            )
        if self.onnx is not None and self.weights not in ("pretrained", str(self.onnx)):
            raise UsageError("--onnx brings its own weights; leave --weights out")
        if self.onnx is not None and (self.shortcut or self.stride_on):
            raise UsageError("--onnx brings its own structure; leave --shortcut and --stride-on out")
        if self.outputs and not has_scheme(self.model) and not self.members:
            raise UsageError(
                "--outputs needs a network with modules to name; pass --model timm:NAME, torchvision:NAME, hf:FOLDER "
                "or module:package.file:function"
            )
        twice = next((name for name in self.outputs if not name or self.outputs.count(name) > 1), None)
        if twice is not None:
            fault = f"names '{twice}' twice" if twice else "has an empty name"
            raise UsageError(f"--outputs {fault}; pass different names, such as c3,c4")
        check_seed(self.seed)

    def _check_members(self, named: list[str]) -> None:
        one_of(self.ensemble_mean, ENSEMBLE_MEANS, "--ensemble-mean")
        others = [*named, *(["--weights"] if self.weights != "pretrained" else [])]
        if others:
            raise UsageError(f"--ensemble names its networks; leave {' and '.join(others)} out")
        if self.outputs:
            raise UsageError("an ensemble averages the answers of its networks; leave --outputs out")
        if len(self.members) < 2:
            raise UsageError("an ensemble needs two networks or more; pass a single one as --weights")

    def _sources(self) -> list[tuple[str, object]]:
        return [("--depth", self.depth), ("--model", self.model), ("--onnx", self.onnx)]


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The origin of INT8 scales: an image set, a table made earlier, or the built-in photographs."""

    images: Path | InMemoryImages | None = None
    table: Path | None = None
    method: str | None = None
    """None is the method that the table was made with, or for images that of the effort."""
    effort: Effort | None = None
    """None is ``DEFAULT_EFFORT`` for images, and for a table the effort that it was made with."""
    equalize: bool | None = None
    bias_correction: bool | None = None
    rounding: Rounding | None = None
    weight_scales: WeightScales | None = None
    full_range: bool | None = None
    """None in these five is the choice of the effort."""
    limit: int = DEFAULT_CALIBRATION_IMAGES
    seed: int = 0
    skip_unreadable: bool = False
    fast_collect: bool = False
    """Collect the statistics in bfloat16 where the CPU has it."""

    def __post_init__(self) -> None:
        if self.images is not None and self.table is not None:
            raise UsageError(
                "--calibration-set and --calibration both say where scales come from; pass one of them"
            )
        positive(self.limit, "--calibration-images")
        check_seed(self.seed)
        if self.method is not None:
            try:
                check_method(self.method)
            except CalibrationError as error:
                raise UsageError(f"--calibration-method: {error}") from None
        if self.effort is not None:
            one_of(self.effort, EFFORTS, "--effort")
        from_images = (self.effort, self.equalize, self.rounding, self.full_range, self.fast_collect or None)
        if self.table is not None and any(option is not None for option in from_images):
            raise UsageError(
                "--fast-collect, --effort, --equalize, --rounding and --full-range need images, and --calibration "
                "brings none; pass --calibration-set instead, or leave these options out"
            )

    @property
    def recipe(self) -> Recipe:
        """The methods to calibrate with, for images."""
        chosen = RECIPES[self.effort or DEFAULT_EFFORT]
        own: dict[str, Any] = {
            "method": self.method,
            "equalize": self.equalize,
            "bias_correction": self.bias_correction,
            "rounding": self.rounding,
            "weight_scales": self.weight_scales,
            "full_range": None if self.full_range is None else ("free", "costs") if self.full_range else (),
        }
        return replace(chosen, **{name: value for name, value in own.items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """The configuration of ``rescompile build``."""

    model: ModelConfig
    precision: Precision = "int8"
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    validation_set: Path | InMemoryImages | None = None
    validation_images: int | None = None
    validate: Validate = "certain"
    """``all`` compares every validation image; ``certain`` stops where the rest would not change the verdict."""
    limits: Limits | None = None
    """None takes ``accuracy.limits.default_limits`` for the precision."""
    fp16_blocks: Fp16Blocks | None = None
    """Blocks of an int8 engine that are not quantized. None is ``auto`` where a validation set comes with a limit on
    agreement or top-1 drop and blocks can be ordered (docs/adr/0009), else ``none``."""
    task: Task = "auto"
    """Meaning of the network's output; ``auto`` finds it from the head."""
    backend: str = "auto"
    target: str | None = None
    cpu_form: CpuForm | None = None
    """Kind of CPU that an int8 engine of OpenVINO is built for; None is this machine's."""
    batch: Batch = field(default_factory=lambda: Batch(1, 1, 32))
    input_format: InputFormat = "float32-nchw"
    output: Path | None = None
    force: bool = False
    keep_reference: bool = True
    """Keep the fp32 graph in the engine directory, so that ``verify`` needs nothing else."""
    thumbnails: bool = True
    """Keep small copies of validation images whose class changed in the report."""
    command: str | None = None
    """The command line that the configuration comes from, for the report."""

    def __post_init__(self) -> None:
        one_of(self.precision, PRECISIONS, "--precision")
        one_of(self.input_format, INPUT_FORMATS, "--input")
        one_of(self.task, TASKS, "--task")
        one_of(self.validate, VALIDATE, "--validate")
        if self.cpu_form is not None:
            one_of(self.cpu_form, CPU_FORMS, "--cpu-form")
        positive(self.validation_images, "--validation-images")
        self._check_arrays()
        if self.precision != "int8":
            if self.calibration.images or self.calibration.table:
                raise UsageError(
                    f"a calibration was passed, but --precision {self.precision} needs none; leave it out"
                )
            for value, option in (
                (self.calibration.full_range, "--full-range"),
                (self.calibration.fast_collect or None, "--fast-collect"),
                (self.fp16_blocks, "--fp16-blocks"),
                (self.cpu_form, "--cpu-form"),
            ):
                if value is not None:
                    raise UsageError(
                        f"{option} belongs to int8 engines; leave it out with --precision {self.precision}"
                    )
        if self.fp16_blocks not in (None, "none") and self.backend in INT8_THROUGHOUT:
            raise UsageError(
                f"--backend {self.backend} cannot leave blocks of INT8 engines in FP16; leave --fp16-blocks out, or "
                "choose another --backend"
            )
        if self.fp16_blocks == "auto":
            self._check_automatic_blocks()

    def _check_arrays(self) -> None:
        sets = (self.calibration.images, self.validation_set)
        normalized = any(isinstance(images, InMemoryImages) and images.normalized for images in sets)
        if normalized and self.input_format == "uint8-nhwc":
            raise UsageError(
                "an engine of uint8 pixels cannot be checked on normalized images; pass a folder or uint8 pixels "
                "[N, H, W, C], or leave --input out"
            )

    def _check_automatic_blocks(self) -> None:
        if self.limits is None or not self.limits.judge_answers or self.validation_set is None:
            raise UsageError(
                "--fp16-blocks auto needs limits to meet on a validation set; pass --validation-set with "
                "--min-agreement, --max-top1-drop or --max-relative-rms"
            )
        if self.calibration.table is not None:
            raise UsageError(
                "--fp16-blocks auto ranks the blocks on calibration images, and --calibration brings none; pass "
                "--calibration-set instead, or name the blocks"
            )

    @property
    def image_sets(self) -> tuple[Path | InMemoryImages | None, ...]:
        """The sets that came with the build, those with labels more likely first."""
        return (self.validation_set, self.calibration.images)

    def output_of(self, network: str, backend: str) -> Path:
        """The directory that was asked for, or ``resnet101-int8-openvino`` in the working directory."""
        return self.output or Path(f"{network}-{self.precision}-{backend}")

    @property
    def may_move_blocks(self) -> bool:
        """Whether blocks may move to FP16 to meet the limits."""
        if self.fp16_blocks is not None:
            return self.fp16_blocks == "auto"
        if self.precision != "int8" or self.limits is None or self.calibration.table is not None:
            return False
        if self.backend in INT8_THROUGHOUT:
            return False
        asked = (self.limits.min_agreement, self.limits.max_top1_drop) != (None, None)
        return asked and self.validation_set is not None
