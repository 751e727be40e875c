"""Terminal output of ``run``, ``inspect`` and ``doctor``: aligned lines, one fact each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rescompile.presenting.report_lines import calibrated_on, in_floating_point
from rescompile.presenting.terminal.table import columns
from rescompile.wording import plain

if TYPE_CHECKING:
    from rescompile.environment import Finding
    from rescompile.runtime.answers import Prediction
    from rescompile.runtime.classify import Classified
    from rescompile.runtime.inspection import Inspection


MOST_VALUES = 16
"""Values of one photograph that the terminal shows."""


def print_classes(answers: Sequence[Classified]) -> None:
    """The classes of each photograph with their probabilities, or its values."""
    for answer in answers:
        numbers = answer.kind in ("values", "features")
        shown = answer.predictions[:MOST_VALUES] if numbers else answer.predictions
        rows = [["", _number(each), each.name] for each in shown]
        if (more := len(answer.predictions) - len(shown)) > 0:
            rows.append(["", "…", f"and {more} more, which --json prints"])
        title = answer.file if answer.output is None else f"{answer.file}, {answer.output}"
        _print([title, *columns(rows, right=(1,))])


def _number(prediction: Prediction) -> str:
    if prediction.probability is None:
        return f"{prediction.value:.6g}"
    return f"{100 * prediction.probability:.2f} %"


def print_inspection(inspection: Inspection) -> None:
    """The manifest and the verdict of the build."""
    _print(columns(inspection_rows(inspection)))


def inspection_rows(inspection: Inspection) -> list[tuple[str, str]]:
    """An engine directory as lines of (label, value)."""
    manifest = inspection.manifest
    calibration, fused, plan = manifest.calibration, inspection.fused, inspection.plan
    rows = [
        ("model", manifest.model),
        ("precision", manifest.precision),
        ("backend", manifest.backend),
        ("target", manifest.target or "this machine's kind"),
        ("batch", str(manifest.batch)),
        *(("input", f"{t.name} {t.dtype} {list(t.shape)} {t.layout}") for t in manifest.inputs),
        *(("output", f"{t.name} {t.dtype} {list(t.shape)} {t.layout}, {t.kind}") for t in manifest.outputs),
        *((("sizes", str(manifest.sizes)),) if manifest.sizes else ()),
        ("preprocess", str(manifest.preprocess)),
        *_names(manifest.classes),
        ("weights", f"{manifest.checkpoint.source} ({manifest.checkpoint.sha256[:12]}…)"),
    ]
    if manifest.fp16_blocks:
        rows.append(("blocks in FP16", ", ".join(manifest.fp16_blocks)))
    if manifest.cpu_form:
        rows.append(("CPU form", manifest.cpu_form))
    rows += in_floating_point(inspection.floating)
    if calibration is not None:
        images = calibrated_on(calibration.images, calibration.source)
        scales = f"{inspection.calibrated_tensors} scales by {calibration.method}"
        rows.append(("calibration", f"{scales} from {images}"))
    if fused is not None:
        rows.append(("fused adds", f"{fused.fused} of {fused.of}, seen in the {fused.seen_in}"))
    if plan is not None:
        rows += [("plan", str(plan)), *(("program", str(program)) for program in plan.programs)]
    return [
        *rows,
        ("verdict at build", inspection.verdict),
        *(("file", f"{name}, {file.bytes:,} bytes, hash as built") for name, file in manifest.files.items()),
        *((f"built with {key}", value) for key, value in manifest.environment.items()),
    ]


def _names(names: Sequence[str]) -> list[tuple[str, str]]:
    if not names:
        return []
    return [("classes", f"{len(names)}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}")]


def print_findings(findings: Sequence[Finding]) -> None:
    """One line per finding of ``doctor``."""
    _print(columns([[f.status, f.subject, "; ".join(filter(None, (f.text, f.advice)))] for f in findings]))


def _print(lines: Sequence[str]) -> None:
    print(*map(plain, lines), sep="\n")
