"""``rescompile verify``: measure an engine directory again and judge it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from numpy.typing import NDArray

from calibration.file_names import text_of
from calibration.images import ImageSet, open_image_set
from rescompile.accuracy.advice import next_steps
from rescompile.accuracy.label_fit import misfit
from rescompile.accuracy.limits import (
    check_kind,
    check_speed_limit,
    judge_all,
    judge_speed,
    speed_not_judged,
    too_few_images,
)
from rescompile.accuracy.other_sizes import with_sizes
from rescompile.accuracy.parity import (
    Measurement,
    Network,
    all_outputs,
    compare_logits,
    open_unlabelled,
    open_validation_set,
)
from rescompile.backends import get_backend
from rescompile.backends.base import SimulatingBackend
from rescompile.backends.fp32 import fp32_session
from rescompile.config import Validate, positive
from rescompile.environment import describe, now
from rescompile.errors import BackendError, BackendUnavailable, EngineError, UsageError
from rescompile.manifest import REFERENCE, REPORT_JSON, Manifest, read_manifest
from rescompile.measuring.speedup import measure_speed
from rescompile.metrics import ONE_CLASS
from rescompile.progress import Progress, StageClock
from rescompile.report import BuildReport, Limits, Speed, read_report
from rescompile.runtime.engine import Engine
from rescompile.runtime.integrity import CheckedEngine
from rescompile.runtime.loading import load_checked, read_trusted, simulate


def verify(
    directory: Path,
    *,
    validation_set: Path | None,
    validation_images: int | None,
    validate: Validate = "certain",
    limits: Limits | None,
    reference: Path | None,
    skip_unreadable: bool,
    progress: Progress,
    trusted_keys: Sequence[Path] = (),
) -> BuildReport:
    """Measure an engine again and judge it by ``limits``, or by those of its build where None.

    Raises:
        UsageError: no validation set, or no image of it.
        EngineError: the engine is damaged, does not reproduce its golden answers, or has no reference.
        BackendUnavailable: the engine cannot run on this machine, and its backend cannot simulate it.
    """
    if validation_set is None:
        raise UsageError("verify needs images to judge by; pass --validation-set PATH")
    positive(validation_images, "--validation-images")
    # mistakes are found before an engine is loaded
    read_manifest(directory)
    open_image_set(validation_set, limit=1)
    clock = StageClock(progress)
    with clock.stage("load"):
        checked = read_trusted(directory, trusted_keys, also=(REFERENCE, REPORT_JSON))
        graph = _reference_graph(checked, reference)
        engine, executed = _engine_or_simulation(checked)
    with engine, clock.stage("verify"):
        manifest = engine.manifest
        built = read_report(checked.files)
        asked, limits = limits, _with_those_of_the_build(limits, built.limits)
        trusted, by = _reference_of(graph, reference or directory / REFERENCE, manifest)
        kind = manifest.outputs[0].kind
        check_kind(limits, kind)
        check_speed_limit(limits, manifest.backend)
        images, remarks = _images(
            validation_set,
            manifest,
            limit=validation_images,
            need_labels=limits.need_labels,
            skip=skip_unreadable,
        )
        measured = compare_logits(
            trusted,
            engine,
            images=images,
            preprocess=manifest.preprocess,
            candidate_input=manifest.inputs[0],
            outputs=manifest.outputs,
            progress=progress,
            until=None if validate == "all" or manifest.sizes is not None else limits,
        )
        measured = with_sizes(measured, trusted, engine, images=images, manifest=manifest, progress=progress)
        speed = measure_speed(engine, checked.files, graph) if executed else None
    report = msgspec.structs.replace(
        _judged(built, measured, manifest, limits, speed),
        date=now(),
        advice=(),
        members=tuple(
            msgspec.structs.replace(member, top1_reference=None, top1_engine=None) for member in built.members
        ),  # an engine returns their mean alone
        engine_executed=executed,
        measured_on=manifest.backend if executed else stand_in(manifest.backend),
        engine_directory=text_of(directory),
        stages=clock.records,
        environment=describe(),
        notes=(
            *images.notes,
            *remarks,
            *by,
            *too_few_images(measured.parity, asked),
            *speed_not_judged(speed, limits),
        ),
    )
    return msgspec.structs.replace(report, advice=next_steps(report, images=validation_set))


def _judged(
    built: BuildReport, measured: Measurement, manifest: Manifest, limits: Limits, speed: Speed | None
) -> BuildReport:
    """The report of the build with the answers that were ``measured`` and the verdict on them."""
    checks = (*judge_all(measured, limits), *judge_speed(speed, limits))
    wrong = None
    if not built.random_weights:
        wrong = misfit(measured.answers, manifest.classes, least=limits.min_top1)
    return msgspec.structs.replace(
        built,
        **msgspec.structs.asdict(measured.parity),
        passed=wrong is None and all(check.passed for check in checks),
        misfit=wrong,
        flips=measured.flips(manifest.classes),
        class_changes=measured.class_changes(manifest.classes),
        speed=speed,
        limits=limits,
        checks=checks,
        logits=measured.logits,
    )


def _with_those_of_the_build(asked: Limits | None, built: Limits) -> Limits:
    """``asked``; the limits of the build where nothing was asked about the answers."""
    if asked is None:
        return built
    if asked.judge_answers or asked.min_speedup is None:
        return asked
    return msgspec.structs.replace(built, min_speedup=asked.min_speedup)


def _images(
    path: Path, manifest: Manifest, *, limit: int | None, need_labels: bool, skip: bool
) -> tuple[ImageSet, tuple[str, ...]]:
    """The validation images, and remarks on their labels."""
    if manifest.outputs[0].kind not in ONE_CLASS:
        return open_unlabelled(path, limit=limit, skip_unreadable=skip)
    names = manifest.classes
    images = open_validation_set(
        path, classes=len(names), limit=limit, need_labels=need_labels, skip_unreadable=skip, names=names
    )
    return images, images.remarks(len(names), names)


def stand_in(backend: str) -> str:
    """The name of what is measured in place of a ``backend``'s engine that cannot run on this machine."""
    found = get_backend(backend)
    return found.simulation if isinstance(found, SimulatingBackend) else "deployable graph (onnxruntime)"


def _engine_or_simulation(checked: CheckedEngine) -> tuple[Engine, bool]:
    """The engine and True; where it cannot run here, its backend's simulation of it and False."""
    try:
        return load_checked(checked), True
    except BackendUnavailable:
        simulated = simulate(checked)
        if simulated is None:
            raise
        return simulated, False


def _reference_graph(checked: CheckedEngine, given: Path | None) -> bytes:
    """The fp32 graph of the engine, or the one that the user gave."""
    if given is None and REFERENCE in checked.manifest.files:
        return checked.files.read(REFERENCE)
    path = given or checked.files.path(REFERENCE)
    if given is None or not path.is_file():
        reason = (
            "does not exist" if given else "is not there, because the engine was built with --no-reference"
        )
        raise EngineError(f"the fp32 reference {path} {reason}; pass --reference FILE.onnx")
    return given.read_bytes()


def _reference_of(graph: bytes, path: Path, manifest: Manifest) -> tuple[Network, tuple[str, ...]]:
    """The fp32 network, and a note on what runs it."""
    loaded, notes = fp32_session(graph)
    session = all_outputs(loaded, manifest.outputs)

    def run(images: NDArray[Any]) -> Any:
        try:
            return session(images)
        except BackendError as error:
            raise EngineError(
                f"{path} is not a reference of this engine ({error}); pass the {REFERENCE} of its build"
            ) from None

    return run, notes
