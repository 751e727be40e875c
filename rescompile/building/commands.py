"""The work behind the smaller commands: calibrate, sensitivity, verify, run, inspect. Building is in ``pipeline``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from calibration.names import text_of
from calibration.table import read_table
from rescompile.accuracy.parity import compare, open_validation_set
from rescompile.accuracy.sensitivity import SensitivityReport, expected_damage, measure_damage, ranked
from rescompile.accuracy.verify import Network, judge
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.triton.summary import PlanSummary, summary_of
from rescompile.building.calibrate import Calibrated, notes_on_skipped, original_of, quantize
from rescompile.building.calibrate import calibrate as calibrate_source
from rescompile.building.mixed_precision import sample_images
from rescompile.building.source import Source, open_source
from rescompile.building.verdict import stand_in
from rescompile.config import CalibrationConfig, ModelConfig, positive
from rescompile.environment import describe
from rescompile.errors import BackendError, BackendUnavailable, EngineError, OutputError, UsageError
from rescompile.manifest import CALIBRATION, REFERENCE, Manifest, read_manifest
from rescompile.progress import Progress, StageClock
from rescompile.report import BuildReport, FusedAdds, Limits, read_report
from rescompile.runtime.engine import Engine
from rescompile.runtime.integrity import check_files
from rescompile.runtime.loading import load, simulate


def calibrate(
    model: ModelConfig, calibration: CalibrationConfig, output: Path, progress: Progress
) -> Calibrated:
    """Calibrate the network and write the table to ``output``.

    Raises:
        OutputError: there is no folder for ``output``; found before any work.
    """
    if not output.absolute().parent.is_dir():
        raise OutputError(f"{output.parent} is no folder; make it, or choose another --output")
    clock = StageClock(progress)
    with clock.stage("load"):
        source = open_source(model, progress)
    with clock.stage("calibrate"):
        calibrated = calibrate_source(source, calibration, progress)
    calibrated.table.write(output)
    return calibrated


def sensitivity(
    model: ModelConfig, calibration: CalibrationConfig, progress: Progress, *, count: int
) -> SensitivityReport:
    """Rank the network's blocks by the damage of their quantization, on ``count`` calibration images at most.

    Raises:
        UsageError: no image, or none to calibrate with.
    """
    positive(count, "--images")
    clock = StageClock(progress)
    with clock.stage("load"):
        source = open_source(model, progress)
    with clock.stage("calibrate"):
        calibrated = calibrate_source(source, calibration, progress)
    with clock.stage("quantize"):
        quantized = quantize(source, calibrated, progress)
    with clock.stage("sensitivity"):
        images = sample_images(calibration, source, count)
        damage = measure_damage(
            original_of(source, calibrated), quantized, images, progress=progress.advanced
        )
    return SensitivityReport(
        model=source.name,
        images=len(images),
        image_source=calibrated.table.images.source,
        together=damage.together,
        blocks=damage.blocks,
        ranking=ranked(damage.blocks),
        expected=_expected(source, calibrated),
        notes=(*source.notes, *calibrated.notes),
    )


def _expected(source: Source, calibrated: Calibrated) -> dict[str, float]:
    """What the noise model of the calibration expects of each block; empty where there is none."""
    if calibrated.comparison is None:
        return {}
    method = calibrated.table.method
    results = {name: entry[method].logits_rms for name, entry in calibrated.comparison.tensors.items()}
    return expected_damage(source.graph, results)


def verify(
    directory: Path,
    *,
    validation_set: Path | None,
    validation_images: int | None,
    limits: Limits | None,
    reference: Path | None,
    skip_unreadable: bool,
    progress: Progress,
) -> BuildReport:
    """Measure an engine again and judge it by ``limits``, or by those of its build where None.

    Raises:
        UsageError: no validation set, or no image of it.
        EngineError: the engine is damaged, does not reproduce its golden answers, or has no reference.
        BackendUnavailable: the engine cannot run on this machine, and its backend has no stand-in.
    """
    if validation_set is None:
        raise UsageError("verify needs images to judge by; pass --validation-set PATH")
    positive(validation_images, "--validation-images")
    clock = StageClock(progress)
    with clock.stage("load"):
        engine, executed = _engine_or_stand_in(directory)
    with engine, clock.stage("verify"):
        manifest = engine.manifest
        built = read_report(directory)
        limits = limits or built.limits
        trusted = _reference_of(directory, reference)
        images = open_validation_set(
            validation_set,
            classes=len(manifest.classes),
            limit=validation_images,
            need_labels=limits.max_top1_drop is not None,
            skip_unreadable=skip_unreadable,
        )
        measured = compare(
            trusted,
            engine,
            images=images,
            preprocess=manifest.preprocess,
            fed=manifest.inputs[0],
            progress=progress,
        )
    checks = judge(measured.parity, limits)
    return msgspec.structs.replace(
        built,
        **msgspec.structs.asdict(measured.parity),
        passed=all(check.passed for check in checks),
        engine_executed=executed,
        measured_on=manifest.backend if executed else stand_in(manifest.backend),
        engine_directory=text_of(directory),
        limits=limits,
        checks=checks,
        stages=clock.records,
        environment=describe(),
        logits=measured.logits,
        notes=notes_on_skipped(images),
    )


def _engine_or_stand_in(directory: Path) -> tuple[Engine, bool]:
    """The engine and True; where it cannot run here, what its backend executes in its place, and False."""
    try:
        return load(directory), True
    except BackendUnavailable:
        simulated = simulate(directory)
        if simulated is None:
            raise
        return simulated, False


def _reference_of(directory: Path, given: Path | None) -> Network:
    path = given or directory / REFERENCE
    if not path.is_file():
        reason = (
            "does not exist" if given else "is not there, because the engine was built with --no-reference"
        )
        raise EngineError(f"the fp32 reference {path} {reason}; pass --reference FILE.onnx")
    session = reference_session(path, optimize=True)

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        try:
            return session(images)
        except BackendError as error:
            raise EngineError(
                f"{path} is no reference of this engine ({error}); pass the {REFERENCE} of its build"
            ) from None

    return run


class Classified(msgspec.Struct, frozen=True):
    """The classes that an engine sees in one photograph, likeliest first."""

    file: str
    classes: tuple[tuple[str, float], ...]
    """Class name and probability."""


def classify(directory: Path, photos: list[Path], *, top: int) -> tuple[Classified, ...]:
    """The ``top`` classes of each photograph.

    Raises:
        EngineError, BackendUnavailable: the engine cannot be loaded.
        ImageSetError: a photograph cannot be read.
    """
    with load(directory) as engine:
        return tuple(Classified(text_of(photo), tuple(engine.classify(photo, top))) for photo in photos)


class Inspection(msgspec.Struct, frozen=True):
    """What is in an engine directory."""

    manifest: Manifest
    verdict: str
    fused: FusedAdds | None
    calibration_method: str | None
    calibrated_tensors: int
    plan: PlanSummary | None = None
    """Of a Triton engine: its launches and memory by batch size."""


def inspect(directory: Path) -> Inspection:
    """Read an engine directory without loading the engine; every hash is checked.

    Raises:
        EngineError: it is no engine directory, or a file was changed.
    """
    manifest = read_manifest(directory)
    check_files(directory, manifest)
    report = read_report(directory)
    path = directory / CALIBRATION
    table = read_table(path) if path.is_file() else None
    return Inspection(
        manifest=manifest,
        verdict=report.verdict,
        fused=report.fused,
        calibration_method=table.method if table else None,
        calibrated_tensors=len(table.tensors) if table else 0,
        plan=summary_of(directory, manifest),
    )
