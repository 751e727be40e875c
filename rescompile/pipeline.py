"""The order of the stages of a build, and nothing else."""

from __future__ import annotations

from calibration.memory import pass_over_what_is_alive, quick_collections
from rescompile.building import engine_directory, mixed_precision, task, verdict
from rescompile.building.calibrate import calibrate
from rescompile.building.deployable import make_deployable
from rescompile.building.early_checks import check_build
from rescompile.building.validation import choose_validation, measure, notes_on_float_images
from rescompile.config import BuildConfig
from rescompile.files import FAILED, atomic_directory
from rescompile.progress import Progress, Silent, StageClock
from rescompile.report import BuildReport


@quick_collections()
def build(config: BuildConfig, progress: Progress | None = None) -> BuildReport:
    """Checkpoint to engine directory and verdict; ``bool(report)`` tells whether the engine may ship.

    An engine that fails its limits is built once more with blocks in FP16 where the configuration allows that. One
    that fails in the end is kept beside the output, as ``OUTPUT.failed``, with its report.

    Raises:
        RescompileError, CalibrationError: what a user can mend; the output then does not exist.
    """
    check_build(config)
    clock = StageClock(progress := progress or Silent())
    backend, notes = engine_directory.backend_for(config)
    rest_type = backend.rest_type(config.precision)
    with clock.stage("load"):
        source, config = task.opened(config, progress)
        named = mixed_precision.named_blocks(source, config)
        pass_over_what_is_alive()
    with atomic_directory(config.output_of(source.name, backend.name), force=config.force) as staging:
        folder = staging.folder
        request = engine_directory.build_request(folder, source, config, backend, progress)
        validation = choose_validation(config, source, backend)
        calibrated, notes = None, (*notes, *source.notes)
        progress.planned({"calibrate": config.calibration.limit, "verify": len(validation.images)})
        if config.precision == "int8":
            with clock.stage("calibrate"):
                calibrated = calibrate(source, config.calibration, progress, backend.int8)
            notes = (*notes, *calibrated.notes)
        notes = (*notes, *notes_on_float_images(validation, source, calibrated))
        table = calibrated.table if calibrated else None
        with clock.stage("quantize"):
            mixed = mixed_precision.quantize_except(named, source, calibrated, progress)
        for again in ("", " again"):
            with clock.stage(f"build{again}"):
                deployable = make_deployable(source, mixed.graph, config, rest_type, mixed.fp16_blocks)
                engine_directory.write_graphs(folder, source, deployable, table, config)
                payload = backend.build(request, folder)
            contents = engine_directory.Contents(
                source=source, config=config, backend=backend, payload=payload, table=table,
                class_names=validation.images.class_names, fp16_blocks=mixed.fp16_blocks,
            )  # fmt: skip
            with clock.stage(f"golden{again}"):
                contents = engine_directory.write_golden(folder, contents, deployable)
                manifest = engine_directory.write_manifest(folder, contents)
            with clock.stage(f"verify{again}"):
                measured = measure(folder, manifest, source, deployable, validation, config, progress)
                wrong = verdict.misfit_of(measured, source, validation, manifest, config.limits)
            passed = verdict.passes(measured, contents, wrong)
            if passed or wrong or again or not config.may_move_blocks:
                break
            with clock.stage("budget"):
                mixed = mixed_precision.meet_limits(mixed, source, validation, measured, config, progress)
            if not mixed.fp16_blocks:
                break
            engine_directory.clear(folder)
        with clock.stage("report"):
            speed = verdict.speed_of(folder, source, validation)
            blocks = verdict.errors_by_block(source, deployable, validation, manifest)
        if not (passed and verdict.fast_enough(speed, config.limits)):
            staging.divert(FAILED)
        report = verdict.make_report(
            manifest=manifest, contents=contents, deployable=deployable, mixed=mixed, validation=validation,
            measured=measured, blocks=blocks, stages=clock.records, directory=staging.target,
            wrong=wrong, speed=speed, notes=(*notes, *mixed.notes, *validation.notes, *payload.notes),
        )  # fmt: skip
        verdict.write_report(folder, report)
        engine_directory.write_manifest(folder, contents)
    return report
