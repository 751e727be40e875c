"""Chooses the blocks of an INT8 network that stay in FP16: those that the user names, or as few as meet the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import onnx

from rescompile.accuracy.limits import judge
from rescompile.accuracy.parity import BATCH, Measurement, Network, compare_logits, image_batches
from rescompile.accuracy.sensitivity import IMAGES, measure_damage, ranked
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.openvino.runner import OpenVinoRunner, simulate
from rescompile.building.calibrate import Calibrated, sample_images
from rescompile.building.precision_search import Search, fewest_fp16_blocks
from rescompile.building.quantize import original_of, quantize
from rescompile.building.source import Source
from rescompile.building.validation import Validation
from rescompile.config import BuildConfig
from rescompile.errors import UsageError, did_you_mean
from rescompile.graph.reformats import predicted_reformats
from rescompile.graph.restore import restore
from rescompile.graph.shared.topology import block_outputs
from rescompile.manifest import Batch, OutputSpec, TensorSpec
from rescompile.progress import Progress
from rescompile.report import BlockDamage, FrontierPoint, Limits

FLOAT_INPUT = TensorSpec("input", (-1, 3, -1, -1), "float32", "NCHW")


@dataclass(frozen=True)
class MixedPrecision:
    """A quantized graph and its blocks that stay in FP16; no graph where the precision quantizes nothing."""

    graph: onnx.ModelProto | None
    calibrated: Calibrated | None = None
    """The calibration that it was quantized with."""
    fp16_blocks: tuple[str, ...] = ()
    """In the order of execution."""
    frontier: tuple[FrontierPoint, ...] = ()
    damages: tuple[BlockDamage, ...] = ()
    notes: tuple[str, ...] = ()


def named_blocks(source: Source, config: BuildConfig) -> tuple[str, ...]:
    """The blocks that the user named, in the order of execution.

    Raises:
        UsageError: a block that the network does not have.
    """
    asked = config.fp16_blocks if isinstance(config.fp16_blocks, tuple) else ()
    known = list(block_outputs(source.graph))
    for name in asked:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UsageError(
                f"--fp16-blocks {name}: the network has no such block; its blocks are {', '.join(known)}.{hint}"
            )
    return tuple(name for name in known if name in asked)


def quantize_except(
    blocks: tuple[str, ...], source: Source, calibrated: Calibrated | None, progress: Progress
) -> MixedPrecision:
    """The quantized graph with ``blocks`` in floating point.

    Raises:
        GraphError: as ``quantize.quantize``.
    """
    if calibrated is None:
        return MixedPrecision(None)
    graph = quantize(source, calibrated, progress)
    if blocks:
        graph = restore(graph, original_of(source, calibrated), blocks)
    return MixedPrecision(graph, calibrated, blocks)


def meet_limits(
    mixed: MixedPrecision,
    source: Source,
    validation: Validation,
    measured: Measurement,
    config: BuildConfig,
    progress: Progress,
) -> MixedPrecision:
    """Move as few blocks to FP16 as meet the limits; the best choice where no choice does.

    Args:
        mixed: INT8 throughout.
        validation: the images that accept or reject a choice. OpenVINO executes candidates, whatever the backend.
        measured: the result of the engine that was built from ``mixed``.
    """
    quantized, limits = mixed.graph, config.limits
    assert quantized is not None
    assert mixed.calibrated is not None
    assert limits is not None
    original = original_of(source, mixed.calibrated)
    images = sample_images(config.calibration, source, IMAGES)
    damages = measure_damage(original, quantized, images, progress=progress.advanced).blocks
    blocks = tuple(entry.block for entry in damages)
    point = partial(_point, blocks=blocks, limits=limits)
    reference = reference_session(source.graph, optimize=True)
    batches = image_batches(validation.images, source.preprocess, FLOAT_INPUT)
    expected = [reference(batch.reference) for batch in batches]

    def measure(choice: tuple[str, ...]) -> FrontierPoint:
        remembered = iter(expected)
        found = compare_logits(
            lambda _: next(remembered),
            _first_output(source, simulate(restore(quantized, original, choice), Batch(1, BATCH, BATCH))),
            images=validation.images,
            preprocess=source.preprocess,
            candidate_input=FLOAT_INPUT,
            outputs=(OutputSpec("", (), "float32", "NC", source.kind),),
            progress=progress,
        )
        return point(choice, found)

    # a verdict that came early rests on other images than those of the choices
    known = {} if measured.parity.image_set_size else {frozenset[str](): point((), measured)}
    search = Search(blocks, measure, known)
    best = fewest_fp16_blocks(search, ranked(damages))
    return replace(
        mixed,
        graph=restore(quantized, original, best.fp16_blocks),
        fp16_blocks=best.fp16_blocks,
        frontier=search.frontier,
        damages=damages,
        notes=(_note(best, blocks),),
    )


def _first_output(source: Source, runner: OpenVinoRunner) -> Network:
    """``runner`` for the first output, on which choices are judged."""
    outputs = source.graph.graph.output
    return runner if len(outputs) == 1 else lambda images: runner.tensors(images)[outputs[0].name]


def _point(
    choice: tuple[str, ...], found: Measurement, *, blocks: Sequence[str], limits: Limits
) -> FrontierPoint:
    parity = found.parity
    drop = None
    if parity.top1_reference is not None and parity.top1_engine is not None:
        drop = 100 * (parity.top1_reference - parity.top1_engine)
    return FrontierPoint(
        fp16_blocks=choice,
        int8_blocks=len(blocks) - len(choice),
        reformats=predicted_reformats(blocks, choice),
        top1_agreement=parity.top1_agreement,
        top1_engine=parity.top1_engine,
        top1_drop=drop,
        relative_rms=parity.relative_rms,
        passed=all(check.passed for check in judge(parity, limits)),
    )


def _note(best: FrontierPoint, blocks: Sequence[str]) -> str:
    if not best.passed:
        return (
            f"the limits cannot be kept even with all {len(blocks)} blocks in FP16; this is the best that was found, "
            f"with {len(best.fp16_blocks)} of them"
        )
    return (
        f"INT8 throughout missed a limit, so {len(best.fp16_blocks)} of {len(blocks)} blocks stay in FP16: "
        f"{', '.join(best.fp16_blocks)}; pass --fp16-blocks none to refuse that"
    )
