"""What the smaller commands print: aligned lines, one fact each, on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rescompile.presenting.report_lines import calibrated_on

if TYPE_CHECKING:
    from rescompile.building.calibrate import Calibrated
    from rescompile.environment import Finding
    from rescompile.runtime.classify import Classified
    from rescompile.runtime.inspection import Inspection


def columns(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> list[str]:
    """``rows`` as lines with aligned columns; those in ``right`` are aligned to the right."""
    if not rows:
        return []
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    ragged = set(right)
    return [
        "  ".join(
            cell.rjust(width) if index in ragged else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def print_calibrated(calibrated: Calibrated, path: Path, *, compare: bool, json: bool) -> None:
    """What ``calibrate`` says: the table at ``path``, or what every method would cost."""
    if compare and calibrated.comparison is not None:
        import msgspec

        from rescompile.presenting.terminal.methods import print_methods

        if json:
            print(msgspec.json.format(msgspec.json.encode(calibrated.comparison), indent=2).decode())
            return
        print_methods(calibrated.comparison, calibrated.table.method)
        print()
        _print_origin(calibrated, path)
    elif json:
        print(path.read_text(), end="")
    else:
        print_table(calibrated, path)


def print_table(calibrated: Calibrated, path: Path) -> None:
    """Every tensor with its range and the threshold of each method."""
    table = calibrated.table
    methods = list(next(iter(table.tensors.values())).thresholds)
    header = ["tensor", "amax", *(f"{name}*" if name == table.method else name for name in methods), "scale"]
    rows = [
        [
            name,
            f"{entry.amax:.5g}",
            *(f"{entry.thresholds[key]:.5g}" for key in methods),
            f"{entry.scale:.5g}",
        ]
        for name, entry in table.tensors.items()
    ]
    print(*columns([header, *rows], right=range(1, len(header))), sep="\n")
    _print_origin(calibrated, path)


def _print_origin(calibrated: Calibrated, path: Path) -> None:
    table = calibrated.table
    images = calibrated_on(table.images.count, table.images.source)
    print(f"{path}: {len(table.tensors)} scales by {table.method} (*) from {images}")
    for note in calibrated.notes:
        print(f"note: {note}")


def print_classes(answers: Sequence[Classified]) -> None:
    """The classes of each photograph with their probabilities."""
    for answer in answers:
        print(answer.file)
        rows = [["", f"{100 * probability:.2f} %", name] for name, probability in answer.classes]
        print(*columns(rows, right=(1,)), sep="\n")


def print_inspection(inspection: Inspection) -> None:
    """The manifest and the verdict of the build, as lines."""
    manifest = inspection.manifest
    rows = [
        ["model", manifest.model],
        ["precision", manifest.precision],
        ["backend", manifest.backend],
        ["target", manifest.target or "this machine's kind"],
        ["batch", str(manifest.batch)],
        *(["input", f"{t.name} {t.dtype} {list(t.shape)} {t.layout}"] for t in manifest.inputs),
        *(["output", f"{t.name} {t.dtype} {list(t.shape)} {t.layout}"] for t in manifest.outputs),
        ["preprocess", _preprocess(inspection)],
        ["classes", f"{len(manifest.classes)}: {', '.join(manifest.classes[:3])}, …"],
        ["weights", f"{manifest.checkpoint.source} ({manifest.checkpoint.sha256[:12]}…)"],
        *([["blocks in FP16", ", ".join(manifest.fp16_blocks)]] if manifest.fp16_blocks else []),
        *_calibration(inspection),
        *_fused(inspection),
        *_plan(inspection),
        ["verdict at build", inspection.verdict],
        *(
            ["file", f"{name}, {digest.bytes:,} bytes, hash as built"]
            for name, digest in manifest.files.items()
        ),
        *([f"built with {key}", value] for key, value in manifest.environment.items()),
    ]
    print(*columns(rows), sep="\n")


def _preprocess(inspection: Inspection) -> str:
    steps = inspection.manifest.preprocess
    resize = f"resize {steps.resize} {steps.interpolation}, " if steps.resize else ""
    return f"{resize}crop {steps.crop}, {steps.color}, mean {list(steps.mean)}, std {list(steps.std)}"


def _calibration(inspection: Inspection) -> list[list[str]]:
    calibration = inspection.manifest.calibration
    if calibration is None:
        return []
    count = f"{inspection.calibrated_tensors} scales by {calibration.method}"
    return [["calibration", f"{count} from {calibrated_on(calibration.images, calibration.source)}"]]


def _plan(inspection: Inspection) -> list[list[str]]:
    plan = inspection.plan
    return [] if plan is None else [["plan", str(plan)], *(["program", str(p)] for p in plan.programs)]


def _fused(inspection: Inspection) -> list[list[str]]:
    fused = inspection.fused
    return (
        [] if fused is None else [["fused adds", f"{fused.fused} of {fused.of}, seen in the {fused.seen_in}"]]
    )


def print_findings(findings: Sequence[Finding]) -> None:
    """One line per finding of ``doctor``."""
    rows = [[f.status, f.subject, "; ".join(filter(None, (f.text, f.advice)))] for f in findings]
    print(*columns(rows), sep="\n")
