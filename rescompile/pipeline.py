"""The order of the stages, and nothing else."""

from __future__ import annotations

from rescompile import assembly, judgement, mixture
from rescompile.calibrate import calibrate_for
from rescompile.config import BuildConfig
from rescompile.deployable import make_deployable
from rescompile.files import atomic_directory
from rescompile.golden import make_golden
from rescompile.report import BuildReport
from rescompile.source import open_source
from rescompile.stages import Progress, Silent, StageClock


def build(config: BuildConfig, progress: Progress | None = None) -> BuildReport:
    """Checkpoint to engine directory and verdict; ``bool(report)`` tells whether the engine may ship.

    An engine that fails its limits is built once more with blocks in FP16 where the configuration allows that. One
    that fails in the end is kept beside the output, as ``OUTPUT.failed``, with its report.

    Raises:
        RescompileError, CalibrationError: what a user can mend; the output then does not exist.
    """
    progress = progress or Silent()
    clock = StageClock(progress)
    chosen = assembly.backend_for(config)
    backend = chosen.backend
    with clock.stage("load"):
        source = open_source(config.model, progress)
        named = mixture.named_blocks(source, config)
    with atomic_directory(assembly.output_of(source, config, backend), force=config.force) as staging:
        folder = staging.folder
        request = assembly.request(folder, source, config, progress)
        judges = judgement.choose_judges(config, source, backend)
        calibrated, notes = None, (*chosen.notes, *source.notes)
        if config.precision == "int8":
            with clock.stage("calibrate"):
                calibrated = calibrate_for(backend, source, config.calibration, progress)
            notes = (*notes, *calibrated.notes)
        with clock.stage("quantize"):
            mixed = mixture.as_asked(source, calibrated, named, progress)
        for again in ("", " again"):
            with clock.stage(f"build{again}"):
                deployable = make_deployable(source, mixed, config, backend.rest_type(config.precision))
                table = calibrated.table if calibrated else None
                assembly.write_graphs(folder, source, deployable, table, keep_reference=config.keep_reference)
                payload = backend.build(request, folder)
            contents = assembly.Contents(
                source=source, config=config, backend=backend, payload=payload, table=table,
                class_names=judges.images.class_names, fp16_blocks=mixed.fp16_blocks,
            )  # fmt: skip
            with clock.stage(f"golden{again}"):
                golden = make_golden(
                    deployable.graph.SerializeToString(), source.preprocess, config.input_format
                )
                assembly.write_golden(folder, golden)
                manifest = assembly.seal(folder, contents)
            with clock.stage(f"verify{again}"):
                measured = judgement.measure(folder, manifest, source, deployable, judges, progress)
            passed = all(check.passed for check in judgement.checks_of(measured, contents)[1])
            if passed or again or not config.keeps_budget:
                break
            with clock.stage("budget"):
                mixed = mixture.keep_budget(mixed, source, judges, measured, config, progress)
            if not mixed.fp16_blocks:
                break
            assembly.clear(folder)
        with clock.stage("report"):
            blocks = judgement.errors_by_block(source, deployable, judges, manifest)
        if not passed:
            staging.divert(".failed")
        report = judgement.make_report(
            manifest=manifest, contents=contents, deployable=deployable, mixture=mixed, judges=judges,
            measured=measured, blocks=blocks, stages=clock.records, directory=staging.target,
            notes=(*notes, *mixed.notes, *judges.notes, *payload.notes),
        )  # fmt: skip
        judgement.write_report(folder, report)
        assembly.seal(folder, contents)
    return report
