"""The order of the stages, and nothing else."""

from __future__ import annotations

from rescompile.building import engine_directory, mixed_precision, verdict
from rescompile.building.calibrate import calibrate
from rescompile.building.deployable import make_deployable
from rescompile.building.golden import make_golden
from rescompile.building.source import open_source
from rescompile.config import BuildConfig
from rescompile.files import atomic_directory
from rescompile.progress import Progress, Silent, StageClock
from rescompile.report import BuildReport


def build(config: BuildConfig, progress: Progress | None = None) -> BuildReport:
    """Checkpoint to engine directory and verdict; ``bool(report)`` tells whether the engine may ship.

    An engine that fails its limits is built once more with blocks in FP16 where the configuration allows that. One
    that fails in the end is kept beside the output, as ``OUTPUT.failed``, with its report.

    Raises:
        RescompileError, CalibrationError: what a user can mend; the output then does not exist.
    """
    progress = progress or Silent()
    clock = StageClock(progress)
    chosen = engine_directory.backend_for(config)
    backend = chosen.backend
    with clock.stage("load"):
        source = open_source(config.model, progress)
        named = mixed_precision.named_blocks(source, config)
    with atomic_directory(engine_directory.output_of(source, config, backend), force=config.force) as staging:
        folder = staging.folder
        request = engine_directory.request(folder, source, config, progress)
        judges = verdict.choose_judges(config, source, backend)
        calibrated, notes = None, (*chosen.notes, *source.notes)
        if config.precision == "int8":
            with clock.stage("calibrate"):
                calibrated = calibrate(source, config.calibration, progress, backend.int8)
            notes = (*notes, *calibrated.notes)
        with clock.stage("quantize"):
            mixed = mixed_precision.as_asked(source, calibrated, named, progress)
        for again in ("", " again"):
            with clock.stage(f"build{again}"):
                deployable = make_deployable(source, mixed, config, backend.rest_type(config.precision))
                table = calibrated.table if calibrated else None
                engine_directory.write_graphs(
                    folder, source, deployable, table, keep_reference=config.keep_reference
                )
                payload = backend.build(request, folder)
            contents = engine_directory.Contents(
                source=source, config=config, backend=backend, payload=payload, table=table,
                class_names=judges.images.class_names, fp16_blocks=mixed.fp16_blocks,
            )  # fmt: skip
            with clock.stage(f"golden{again}"):
                golden = make_golden(
                    deployable.graph.SerializeToString(), source.preprocess, config.input_format
                )
                engine_directory.write_golden(folder, golden)
                manifest = engine_directory.seal(folder, contents)
            with clock.stage(f"verify{again}"):
                measured = verdict.measure(folder, manifest, source, deployable, judges, progress)
            passed = all(check.passed for check in verdict.checks_of(measured, contents)[1])
            if passed or again or not config.keeps_budget:
                break
            with clock.stage("budget"):
                mixed = mixed_precision.keep_budget(mixed, source, judges, measured, config, progress)
            if not mixed.fp16_blocks:
                break
            engine_directory.clear(folder)
        with clock.stage("report"):
            blocks = verdict.errors_by_block(source, deployable, judges, manifest)
        if not passed:
            staging.divert(".failed")
        report = verdict.make_report(
            manifest=manifest, contents=contents, deployable=deployable, mixture=mixed, judges=judges,
            measured=measured, blocks=blocks, stages=clock.records, directory=staging.target,
            notes=(*notes, *mixed.notes, *judges.notes, *payload.notes),
        )  # fmt: skip
        verdict.write_report(folder, report)
        engine_directory.seal(folder, contents)
    return report
