"""The verdict on a new engine and everything that led to it, as ``report.json`` and ``report.html``."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from calibration.file_names import text_of
from calibration.methods.comparison import MethodResult
from calibration.preprocess import normalize
from calibration.table import TensorRange
from rescompile.accuracy.advice import next_steps
from rescompile.accuracy.error_by_block import block_errors
from rescompile.accuracy.label_fit import misfit, share_in_another_order
from rescompile.accuracy.limits import (
    judge_all,
    judge_speed,
    limits_for,
    speed_not_judged,
    too_few_images,
)
from rescompile.accuracy.other_preprocessing import better_preprocessing
from rescompile.accuracy.parity import Measurement
from rescompile.accuracy.verify import stand_in
from rescompile.backends.base import Payload
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.calibrate import Calibrated
from rescompile.building.deployable import Deployable
from rescompile.building.engine_directory import Contents
from rescompile.building.mixed_precision import MixedPrecision
from rescompile.building.resolved_options import resolved_options
from rescompile.building.source import Source
from rescompile.building.validation import Validation
from rescompile.config import INT8_THROUGHOUT, BuildConfig
from rescompile.engine_files import EngineFiles
from rescompile.environment import now
from rescompile.errors import GraphError
from rescompile.files import atomic_write
from rescompile.graph.shared.names import INPUT
from rescompile.graph.shared.topology import block_outputs
from rescompile.manifest import README, REFERENCE, REPORT_HTML, REPORT_JSON, Manifest, read_manifest
from rescompile.measuring.speedup import measure_speed
from rescompile.measuring.work import work_of
from rescompile.presenting.engine_readme import engine_readme
from rescompile.presenting.html.report_page import render
from rescompile.report import (
    ActivationRange,
    BlockError,
    BlockWork,
    BuildReport,
    Check,
    FusedAdds,
    Limits,
    Speed,
    StageRecord,
)
from rescompile.runtime.loading import load
from rescompile.wording import counted, percent

BLOCK_IMAGES = 4
"""Images on which the error of every block is measured."""
MOST_BLOCKS = 128
"""Deeper networks are compared at this many blocks, evenly chosen, the first and last among them."""


def check_limits(measured: Measurement, contents: Contents) -> tuple[Limits, tuple[Check, ...]]:
    """The limits (the precision's defaults where nothing was asked), and each beside its measurement."""
    config = contents.config
    limits = limits_for(
        config.limits, config.precision, random_weights=contents.source.random, kind=contents.source.kind
    )
    return limits, judge_all(measured, limits)


def speed_of(folder: Path, source: Source, validation: Validation) -> Speed | None:
    """The engine in ``folder`` against the fp32 network; None where it or its library's fp32 does not run here."""
    if not validation.executed:
        return None
    files = EngineFiles(folder)
    with load(folder, verify=False) as engine:
        # the file is this graph, unless it takes a range of sizes
        kept = REFERENCE in engine.manifest.files and engine.manifest.sizes is None
        reference = folder / REFERENCE if kept else source.graph.SerializeToString()
        return measure_speed(engine, files, reference)


def passes(measured: Measurement, contents: Contents, wrong: str | None) -> bool:
    """Whether every limit is met, and nothing is ``wrong`` with the figures themselves."""
    return wrong is None and all(check.passed for check in check_limits(measured, contents)[1])


def misfit_of(
    measured: Measurement, source: Source, validation: Validation, manifest: Manifest, limits: Limits | None
) -> str | None:
    """Why the figures say nothing about the engine; None where they do."""
    if source.random:
        return None
    wrong = misfit(measured.answers, manifest.classes, least=limits.min_top1 if limits else None)
    if source.kind != "classes" or not (wrong or source.preprocess_assumed):
        return wrong
    reference = reference_session(source.graph, optimize=True)
    better = better_preprocessing(reference, validation.images, source.preprocess)
    # answers in another order can be right more often by chance than answers that never are
    if better is None or better.top1 <= share_in_another_order(measured.answers, manifest.classes):
        return wrong
    origin = "was assumed" if source.preprocess_assumed else "is the one that was asked"
    return (
        f"the preprocessing {origin}, and the labels suggest another one ({better.name}): the fp32 "
        f"network names the right class for {percent(better.top1)} of {counted(better.images, 'image')} with "
        f"{better.options}, and for {percent(better.top1_assumed)} as it was fed; pass these options, or "
        "those that you know to be right"
    )


def fast_enough(speed: Speed | None, limits: Limits | None) -> bool:
    """Whether the limit on the speed is met, where one was asked and the speed is known."""
    return all(check.passed for check in judge_speed(speed, limits or Limits()))


def _pointless(config: BuildConfig) -> set[str]:
    """Options that would not help in another build."""
    tried = set()
    if config.calibration.table is not None or config.calibration.effort == "best":
        tried.add("--effort best")
    if config.fp16_blocks not in (None, "none") or config.backend in INT8_THROUGHOUT:
        tried.add("--fp16-blocks")
    return tried


def errors_by_block(
    source: Source, deployable: Deployable, validation: Validation, manifest: Manifest
) -> tuple[BlockError, ...]:
    """Error of the deployable graph at the end of every residual block, on a few validation images."""
    pixels = next(validation.images.batches(source.preprocess, BLOCK_IMAGES)).images
    return block_errors(
        source.graph,
        deployable.graph,
        normalize(pixels, source.preprocess),
        _sample(block_outputs(source.graph)),
        deployable_images=pixels if manifest.inputs[0].dtype == "uint8" else None,
    )


def _sample(blocks: dict[str, str]) -> dict[str, str]:
    names = list(blocks)
    chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), MOST_BLOCKS)).round().astype(int))
    return {names[index]: blocks[names[index]] for index in chosen}


def make_report(
    *,
    manifest: Manifest,
    contents: Contents,
    deployable: Deployable,
    mixed: MixedPrecision,
    validation: Validation,
    measured: Measurement,
    blocks: tuple[BlockError, ...],
    stages: tuple[StageRecord, ...],
    notes: tuple[str, ...],
    directory: Path,
    wrong: str | None,
    speed: Speed | None,
) -> BuildReport:
    """The verdict, and everything that led to it; ``wrong`` is the reason why nothing can be judged."""
    limits, checks = check_limits(measured, contents)
    report = BuildReport(
        date=now(),
        command=contents.config.command,
        options=resolved_options(contents, mixed.calibrated),
        passed=passes(measured, contents, wrong) and fast_enough(speed, limits),
        misfit=wrong,
        flips=measured.flips(manifest.classes),
        class_changes=measured.class_changes(manifest.classes),
        speed=speed,
        task_reason=contents.source.kind_reason,
        engine_executed=validation.executed,
        measured_on=manifest.backend if validation.executed else stand_in(manifest.backend),
        model=manifest.model,
        precision=manifest.precision,
        backend=manifest.backend,
        target=manifest.target,
        engine_directory=text_of(directory),
        **msgspec.structs.asdict(measured.parity),
        limits=limits,
        checks=(*checks, *judge_speed(speed, limits)),
        lint=deployable.lint,
        fused=_fused(deployable, contents.payload),
        stages=stages,
        environment=manifest.environment,
        notes=(
            *notes,
            *too_few_images(measured.parity, contents.config.limits),
            *speed_not_judged(speed, limits),
        ),
        blocks=blocks,
        ranges=_ranges(mixed.calibrated),
        logits=measured.logits,
        checkpoint=manifest.checkpoint,
        calibration=manifest.calibration,
        fp16_blocks=mixed.fp16_blocks,
        reformats=deployable.reformats,
        frontier=mixed.frontier,
        damages=mixed.damages,
        members=measured.members,
        work=_work(deployable),
    )
    images = contents.config.validation_set
    path = images if isinstance(images, Path) else None  # no command takes images in memory
    return msgspec.structs.replace(
        report, advice=next_steps(report, images=path, pointless=_pointless(contents.config))
    )


def _work(deployable: Deployable) -> tuple[BlockWork, ...]:
    """The work of each block for one image, which ``profile`` shows; empty where ONNX cannot infer the shapes."""
    try:
        return work_of(deployable.graph, 1)
    except GraphError:
        return ()


def _fused(deployable: Deployable, payload: Payload) -> FusedAdds | None:
    """Fused residual adds that the engine's inspector saw, or that the graph allows where there is no inspector."""
    if payload.fused_adds is None or deployable.fused is None:
        return deployable.fused
    return FusedAdds(payload.fused_adds, deployable.fused.of, "engine")


def _ranges(calibrated: Calibrated | None) -> tuple[ActivationRange, ...]:
    """Ranges of the tensors that the table's thresholds quantize; not the input, where its pixels are exact."""
    if calibrated is None:
        return ()
    table, compared = calibrated.table, calibrated.comparison
    results = compared.tensors if compared is not None else {}
    return tuple(
        _range(name, entry, results.get(name, {}).get(table.method))
        for name, entry in table.tensors.items()
        if name != INPUT or not calibrated.exact_pixels
    )


def _range(name: str, entry: TensorRange, result: MethodResult | None) -> ActivationRange:
    known = (None, None) if result is None else (result.clipped, result.sqnr_db)
    return ActivationRange(name, entry.amax, entry.threshold, entry.scale, *known)


def write_report(folder: Path, report: BuildReport) -> None:
    """Write ``report.json``, ``report.html`` and the ``README.md`` of the directory."""
    atomic_write(folder / REPORT_JSON, report.to_json())
    atomic_write(folder / REPORT_HTML, render(report).encode())
    atomic_write(folder / README, engine_readme(read_manifest(folder), report).encode())
