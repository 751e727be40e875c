"""``rescompile inspect``: read an engine directory without loading the engine."""

from __future__ import annotations

from pathlib import Path

from calibration.table import parse_table
from rescompile.backends.triton.summary import PlanSummary, summary_of
from rescompile.manifest import CALIBRATION, REPORT_JSON, TRITON_PLAN, Manifest
from rescompile.report import FloatOperations, FusedAdds, JsonReport, read_report
from rescompile.runtime.integrity import read_engine


class Inspection(JsonReport, frozen=True):
    """The contents of an engine directory, without its files."""

    manifest: Manifest
    verdict: str
    fused: FusedAdds | None
    calibration_method: str | None
    calibrated_tensors: int
    floating: tuple[FloatOperations, ...] = ()
    """Operations that stay in floating point in an INT8 engine; empty for engines of versions that did not record
    them."""
    plan: PlanSummary | None = None
    """Launches and memory of a Triton engine by batch size."""


def inspect(directory: Path) -> Inspection:
    """Read an engine directory and check every hash.

    Raises:
        EngineError: it is not an engine directory, or a file was changed.
    """
    checked = read_engine(directory, also=(REPORT_JSON, CALIBRATION, TRITON_PLAN))
    manifest, files = checked.manifest, checked.files
    report = read_report(files)
    listed = CALIBRATION in manifest.files
    table = parse_table(files.read(CALIBRATION), files.path(CALIBRATION)) if listed else None
    return Inspection(
        manifest=manifest,
        verdict=report.verdict,
        fused=report.fused,
        calibration_method=table.method if table else None,
        calibrated_tensors=len(table.tensors) if table else 0,
        floating=report.lint.floating,
        plan=summary_of(files, manifest),
    )
