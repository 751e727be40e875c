"""``report.json``: limits, measurements and the verdict. Terminal and HTML show the same report."""

from __future__ import annotations

from typing import Literal

import msgspec

from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import EngineError, reason_of
from rescompile.manifest import REPORT_JSON, CalibrationRef, CheckpointRef, OutputKind

NOT_JUDGED = "not judged: the network does not fit these labels"


class JsonReport(msgspec.Struct, frozen=True):
    """Base of all results that commands print or write as JSON."""

    def to_json(self) -> bytes:
        """The report as indented JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits that an engine must meet to pass; None means no limit. Fractions, not percent."""

    min_agreement: float | None = None
    """Share of images for which the engine decides as the fp32 reference does."""
    max_top1_drop: float | None = None
    """Largest allowed loss of top-1 accuracy in percentage points; needs labels."""
    max_relative_rms: float | None = None
    """Largest allowed RMS of the outputs' error over RMS of the reference's outputs."""
    min_top1: float | None = None
    """Smallest top-1 accuracy of the engine; needs labels."""
    min_cosine: float | None = None
    """Smallest cosine between the outputs of both networks for one image."""
    max_error: float | None = None
    """Largest difference of one output, in its own unit."""
    min_speedup: float | None = None
    """Smallest ratio of the fp32 network's time to the engine's, both on the machine that judges."""

    @property
    def judge_answers(self) -> bool:
        """Whether a limit concerns the answers, and not the speed alone."""
        return msgspec.structs.replace(self, min_speedup=None) != Limits()

    @property
    def need_labels(self) -> bool:
        """Whether a limit can be judged on labelled images alone."""
        return (self.max_top1_drop, self.min_top1) != (None, None)


class Check(msgspec.Struct, frozen=True):
    """One line of the verdict: a limit beside its measurement."""

    name: str
    asked: str
    measured: str
    passed: bool


class StageRecord(msgspec.Struct, frozen=True):
    """Wall time and peak resident memory of one stage."""

    name: str
    seconds: float
    peak_rss_bytes: int


class FloatOperations(msgspec.Struct, frozen=True):
    """Operations of an INT8 engine that no rule quantizes, and the reason."""

    reason: str
    nodes: tuple[str, ...]
    """Named by block, in the order of execution."""


class LintResult(msgspec.Struct, frozen=True):
    """Names of the rules that were checked, and a sentence for each violation."""

    rules: tuple[str, ...]
    violations: tuple[str, ...]
    floating: tuple[FloatOperations, ...] = ()
    """Operations to which no rule for INT8 applies."""


class FusedAdds(msgspec.Struct, frozen=True):
    """How many of the ``of`` residual adds fuse into a convolution; ``seen_in`` is "graph" or "engine"."""

    fused: int
    of: int
    seen_in: str


class BlockError(msgspec.Struct, frozen=True):
    """Error of one block's output against fp32: signal-to-quantization-noise ratio in dB and cosine."""

    block: str
    sqnr_db: float
    cosine: float


class BlockWork(msgspec.Struct, frozen=True, kw_only=True):
    """One block at one batch size; a multiplication and its addition are two operations."""

    block: str
    float_ops: int
    int8_ops: int
    weight_bytes: int
    activation_bytes: int
    layers: int
    """Convolutions, classifier and pools."""

    @property
    def bytes(self) -> int:
        """All bytes moved."""
        return self.weight_bytes + self.activation_bytes

    @property
    def ops(self) -> int:
        """All operations."""
        return self.float_ops + self.int8_ops

    def times(self, batch: int) -> BlockWork:
        """The work on ``batch`` images of a block that is counted for one; weights are read once."""
        return msgspec.structs.replace(
            self,
            float_ops=batch * self.float_ops,
            int8_ops=batch * self.int8_ops,
            activation_bytes=batch * self.activation_bytes,
        )


class ActivationRange(msgspec.Struct, frozen=True):
    """Largest magnitude seen at a quantized tensor and the threshold chosen for it."""

    tensor: str
    amax: float
    threshold: float
    scale: float | None = None
    """Step of the INT8 grid; this and the next two are None in reports of versions that did not record them."""
    saturated: float | None = None
    """Share of the calibration images' values beyond the threshold; None for a table that was read from a file."""
    sqnr_db: float | None = None
    """Signal over the expected error of the tensor alone; None as above, and for a tensor without any error."""


class BlockDamage(msgspec.Struct, frozen=True):
    """The error of the logits when one block alone is quantized, on calibration images."""

    block: str
    relative_rms: float
    """RMS of the logits' error over RMS of the fp32 logits."""


class Flip(msgspec.Struct, frozen=True, kw_only=True):
    """An image for which the engine names another class than the fp32 network."""

    image: str
    reference: str
    engine: str
    label: str | None
    reference_margin: float | None = None
    """By how much the fp32 logit of its class exceeds that of the engine's class; None for several labels."""
    engine_margin: float | None = None
    """The same of the engine's logits, for its own class."""
    thumbnail: bytes = b""
    """Small PNG of the pixels that the network saw; empty for most images of a long list, and where not wanted."""


class ClassChange(msgspec.Struct, frozen=True, kw_only=True):
    """The images of one class, which is their label, or without labels the fp32 network's answer."""

    name: str
    images: int
    changed: int
    """Images that the engine answers otherwise than the fp32 network."""
    right_reference: int | None
    """Right answers of the fp32 network; None without labels."""
    right_engine: int | None


class Speed(msgspec.Struct, frozen=True, kw_only=True):
    """The engine and the fp32 network of one library on one machine, timed in turns. Times are medians of a call."""

    batch: int
    library: str
    """What ran both."""
    engine_ms: float
    engine_interval: tuple[float, float]
    """95 % interval of the median."""
    fp32_ms: float
    fp32_interval: tuple[float, float]
    engine_bytes: int
    """Size of the files that the library loads."""
    fp32_bytes: int
    disturbances: tuple[str, ...] = ()
    """Reasons why the times may be unstable."""

    @property
    def ratio(self) -> float:
        """How many times as fast as fp32 the engine is."""
        return self.fp32_ms / self.engine_ms


class FrontierPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of blocks that stay in FP16, measured on the validation images."""

    fp16_blocks: tuple[str, ...]
    """In the order of execution."""
    int8_blocks: int
    reformats: int
    """Kernels that change an activation between int8 and floating point."""
    top1_agreement: float | None
    top1_engine: float | None
    top1_drop: float | None
    """In percentage points; None for images without labels."""
    relative_rms: float
    passed: bool
    """Whether it meets every limit."""


class MemberAccuracy(msgspec.Struct, frozen=True, kw_only=True):
    """One network of an ensemble; accuracies are None where there were no labels."""

    name: str
    checkpoint: CheckpointRef
    top1_reference: float | None = None
    top1_engine: float | None = None
    """In the engine's precision."""


class Parity(msgspec.Struct, frozen=True, kw_only=True):
    """The comparison of an engine (or its deployable graph) with the fp32 reference on one image set.

    ``top1_reference`` and ``top1_engine`` are None for images without labels. Intervals hold the true share with a
    probability of 95 % (Wilson).
    """

    images: int
    image_source: str
    image_fingerprint: str
    top1_reference: float | None
    top1_engine: float | None
    top1_agreement: float | None
    """Share of images with the same class; of multilabel outputs, the labels that both sides give as a share of those
    that at least one gives; None for values and features."""
    relative_rms: float
    cosine: float
    max_abs: float
    image_set_size: int | None = None
    """Images of the set, where the verdict was certain before all were compared (``accuracy.certainty``); else None."""
    task: OutputKind = "classes"
    worst_cosine: float | None = None
    """Cosine of the image with the smallest one."""
    top1_intervals: tuple[tuple[float, float], ...] = ()
    """Intervals of the reference and of the engine; empty without labels."""
    agreement_interval: tuple[float, float] | None = None
    top1_drop_p: float | None = None
    """Probability that chance alone makes a difference of top-1 as large as this one (McNemar's exact test)."""


class BuildReport(JsonReport, frozen=True, kw_only=True):
    """The verdict on one engine. ``bool(report)`` is ``report.passed``."""

    format: Literal[1] = 1
    """Version of this form; a reader refuses a newer one."""
    date: str | None = None
    """When the engine was judged, in UTC (ISO 8601)."""
    command: str | None = None
    """The command line of the build; None where a Python program built the engine."""
    options: dict[str, str] = {}
    """The options of the build with every default and effort resolved, by name."""
    passed: bool
    engine_executed: bool
    measured_on: str
    """The source of the logits: the backend's name, or "deployable graph (onnxruntime)"."""
    model: str
    precision: str
    backend: str
    target: str | None
    engine_directory: str
    images: int
    image_source: str
    image_fingerprint: str
    top1_reference: float | None
    top1_engine: float | None
    top1_agreement: float | None
    relative_rms: float | None
    cosine: float | None
    max_abs: float | None
    limits: Limits
    checks: tuple[Check, ...]
    lint: LintResult
    fused: FusedAdds | None
    stages: tuple[StageRecord, ...]
    environment: dict[str, str]
    notes: tuple[str, ...] = ()
    blocks: tuple[BlockError, ...] = ()
    ranges: tuple[ActivationRange, ...] = ()
    logits: tuple[tuple[float, float], ...] = ()
    """Pairs (fp32, engine), a sample for the plot."""
    checkpoint: CheckpointRef | None = None
    calibration: CalibrationRef | None = None
    fp16_blocks: tuple[str, ...] = ()
    """Blocks of an int8 engine that are not quantized."""
    reformats: int | None = None
    """Kernels that change an activation between int8 and floating point; None where nothing is quantized."""
    frontier: tuple[FrontierPoint, ...] = ()
    """Every choice of blocks that was tried to meet the limits, fewest INT8 blocks first; empty without a search."""
    damages: tuple[BlockDamage, ...] = ()
    """The damage of each block, by which that search ordered them."""
    top1_intervals: tuple[tuple[float, float], ...] = ()
    agreement_interval: tuple[float, float] | None = None
    top1_drop_p: float | None = None
    """These three are as in ``Parity``."""
    task: OutputKind = "classes"
    """Meaning of the output, by which it was judged."""
    task_reason: str = ""
    image_set_size: int | None = None
    """As in ``Parity``."""
    worst_cosine: float | None = None
    misfit: str | None = None
    """The reason why the figures say nothing: the network does not fit the labels, or it was fed wrongly."""
    flips: tuple[Flip, ...] = ()
    """Images whose classes differ between the engine and the fp32 network; the first hundred."""
    class_changes: tuple[ClassChange, ...] = ()
    """The classes with changed images, those with the most first; at most a hundred."""
    speed: Speed | None = None
    """Comparison with fp32 on the machine that judged; None where it could not be made."""
    members: tuple[MemberAccuracy, ...] = ()
    """The networks of an ensemble, whose joint figures the others are."""
    advice: tuple[str, ...] = ()
    """Next steps after a failed verdict."""
    work: tuple[BlockWork, ...] = ()
    """The work of each block for one image; empty for engines of versions that did not record it."""

    @property
    def random_weights(self) -> bool:
        """Whether the engine is for timing only."""
        return self.checkpoint is not None and self.checkpoint.source.startswith("random, seed ")

    @property
    def judged(self) -> bool:
        """Whether the engine was measured against at least one limit."""
        return self.images > 0 and self.limits.judge_answers

    @property
    def verdict(self) -> str:
        """The headline; only an engine that was executed and held to a limit is "verified"."""
        if self.misfit is not None:
            return NOT_JUDGED
        if not self.passed:
            return "failed"
        if not self.engine_executed:
            return "built, not executed here"
        return "verified" if self.judged else "built, not judged"

    def __bool__(self) -> bool:
        return self.passed


def read_report(source: EngineSource) -> BuildReport:
    """``report.json`` of an engine directory.

    Raises:
        EngineError: it is missing or damaged.
    """
    files = files_in(source)
    path, text = files.path(REPORT_JSON), files.read(REPORT_JSON)
    try:
        return msgspec.json.decode(text, type=BuildReport)
    except msgspec.DecodeError as error:
        raise EngineError(f"{path} cannot be read ({reason_of(error)}); build the engine again") from None
