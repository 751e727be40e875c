"""From measurements to the report: what runs in the engine's place, the verdict, and the two files of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from calibration.names import text_of
from calibration.preprocess import normalize
from rescompile.accuracy.error_by_block import block_errors
from rescompile.accuracy.parity import Judges, choose_images, compare
from rescompile.accuracy.verify import Measurement, default_limits, judge
from rescompile.backends import get_backend
from rescompile.backends.base import Backend, Payload, SimulatingBackend
from rescompile.backends.onnxruntime import reference_session
from rescompile.building.calibrate import Calibrated
from rescompile.building.deployable import Deployable
from rescompile.building.engine_directory import Contents
from rescompile.building.mixed_precision import Mixture
from rescompile.building.source import Source
from rescompile.config import BuildConfig
from rescompile.files import atomic_write
from rescompile.graph.shared.names import INPUT
from rescompile.graph.shared.topology import block_outputs
from rescompile.manifest import REPORT_HTML, REPORT_JSON, Manifest
from rescompile.presenting.html.report_page import render
from rescompile.progress import Progress
from rescompile.report import ActivationRange, BlockError, BuildReport, Check, FusedAdds, Limits, StageRecord
from rescompile.runtime.loading import load, simulate

BLOCK_IMAGES = 4
"""Images on which the error of every block is taken."""
MOST_BLOCKS = 128
"""Deeper networks are compared at this many blocks, evenly chosen, and at both ends."""


def measure(
    folder: Path,
    manifest: Manifest,
    source: Source,
    deployable: Deployable,
    judges: Judges,
    progress: Progress,
) -> Measurement:
    """The engine in ``folder`` (after its golden self-test) against fp32; where it cannot run, its stand-in.

    Raises:
        EngineError: the engine does not reproduce its golden answers.
    """
    reference = reference_session(source.graph.SerializeToString(), optimize=True)
    against = partial(
        compare,
        reference,
        images=judges.images,
        preprocess=source.preprocess,
        fed=manifest.inputs[0],
        progress=progress,
    )
    engine = load(folder) if judges.executed else simulate(folder)
    if engine is None:
        return against(reference_session(deployable.graph.SerializeToString(), optimize=False))
    with engine:
        return against(engine)


def choose_judges(config: BuildConfig, source: Source, backend: Backend) -> Judges:
    """The images that decide about an engine, and whether it can be executed here; see ``parity.choose_images``."""
    executed = backend.availability(config.target).run
    return choose_images(config, source, executed=executed, stand_in=stand_in(backend.name))


def stand_in(backend: str) -> str:
    """What gives the figures of a ``backend``'s engine that cannot run on this machine."""
    found = get_backend(backend)
    return found.simulation if isinstance(found, SimulatingBackend) else "deployable graph (onnxruntime)"


def errors_by_block(
    source: Source, deployable: Deployable, judges: Judges, manifest: Manifest
) -> tuple[BlockError, ...]:
    """Error of the deployable graph at the end of every residual block, on a few of the judges' images."""
    pixels = next(judges.images.batches(source.preprocess, BLOCK_IMAGES)).images
    normalized = normalize(pixels, source.preprocess)
    return block_errors(
        source.graph.SerializeToString(),
        deployable.graph.SerializeToString(),
        normalized,
        _sample(block_outputs(source.graph)),
        deployable_images=pixels if manifest.inputs[0].dtype == "uint8" else None,
    )


def _sample(blocks: dict[str, str]) -> dict[str, str]:
    names = list(blocks)
    chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), MOST_BLOCKS)).round().astype(int))
    return {names[index]: blocks[names[index]] for index in chosen}


def checks_of(measured: Measurement, contents: Contents) -> tuple[Limits, tuple[Check, ...]]:
    """What was asked (the precision's defaults where nothing was), and each limit beside its measurement."""
    config = contents.config
    limits = config.limits or default_limits(config.precision, random_weights=contents.source.random)
    return limits, judge(measured.parity, limits)


def make_report(
    *,
    manifest: Manifest,
    contents: Contents,
    deployable: Deployable,
    mixture: Mixture,
    judges: Judges,
    measured: Measurement,
    blocks: tuple[BlockError, ...],
    stages: tuple[StageRecord, ...],
    notes: tuple[str, ...],
    directory: Path,
) -> BuildReport:
    """The verdict, and everything that led to it."""
    limits, checks = checks_of(measured, contents)
    return BuildReport(
        passed=all(check.passed for check in checks),
        engine_executed=judges.executed,
        measured_on=manifest.backend if judges.executed else stand_in(manifest.backend),
        model=manifest.model,
        precision=manifest.precision,
        backend=manifest.backend,
        target=manifest.target,
        engine_directory=text_of(directory),
        **msgspec.structs.asdict(measured.parity),
        limits=limits,
        checks=checks,
        lint=deployable.lint,
        fused=_fused(deployable, contents.payload),
        stages=stages,
        environment=manifest.environment,
        notes=notes,
        blocks=blocks,
        ranges=_ranges(mixture.calibrated),
        logits=measured.logits,
        checkpoint=manifest.checkpoint,
        calibration=manifest.calibration,
        fp16_blocks=mixture.fp16_blocks,
        reformats=deployable.reformats,
        frontier=mixture.frontier,
        damages=mixture.damages,
    )


def _fused(deployable: Deployable, payload: Payload) -> FusedAdds | None:
    """What the engine's inspector saw, or what the graph promises where the engine cannot be inspected."""
    if payload.fused_adds is None or deployable.fused is None:
        return deployable.fused
    return FusedAdds(payload.fused_adds, deployable.fused.of, "engine")


def _ranges(calibrated: Calibrated | None) -> tuple[ActivationRange, ...]:
    """Of the tensors that the table's thresholds quantize, which the input is not where its pixels are exact."""
    if calibrated is None:
        return ()
    return tuple(
        ActivationRange(name, entry.amax, entry.threshold)
        for name, entry in calibrated.table.tensors.items()
        if name != INPUT or not calibrated.exact_pixels
    )


def write_report(folder: Path, report: BuildReport) -> None:
    """Write ``report.json`` and ``report.html``."""
    atomic_write(folder / REPORT_JSON, report.to_json())
    atomic_write(folder / REPORT_HTML, render(report).encode())
