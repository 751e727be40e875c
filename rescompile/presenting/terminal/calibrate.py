"""Terminal output of ``rescompile calibrate``: the table, or with ``--compare`` every method on every tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from calibration.methods.comparison import Comparison, MethodResult
from calibration.table import CalibrationTable
from rescompile.presenting.report_lines import calibrated_on
from rescompile.presenting.terminal.table import columns
from rescompile.wording import plain, write_json

if TYPE_CHECKING:
    from rescompile.building.calibrate import Calibrated


def print_calibrated(calibrated: Calibrated, path: Path, *, compare: bool, json: bool) -> None:
    """Print the table at ``path``, or with ``compare`` what every method would cost."""
    table = calibrated.table
    if compare and calibrated.comparison is not None:
        if json:
            write_json(msgspec.json.format(msgspec.json.encode(calibrated.comparison), indent=2).decode())
            return
        print(*comparison_lines(calibrated.comparison, table.method), "", sep="\n")
    elif json:
        write_json(path.read_text("utf-8").rstrip())
        return
    else:
        print(*table_lines(table), sep="\n")
    images = calibrated_on(table.images.count, table.images.source)
    print(plain(f"{path}: {len(table.tensors)} scales by {table.method} (*) from {images}"))
    for note in calibrated.notes:
        print(plain(f"note: {note}"))


def table_lines(table: CalibrationTable) -> list[str]:
    """One line a tensor: its range, the threshold of each method, and the scale of the method in use."""
    methods = list(next(iter(table.tensors.values())).thresholds)
    header = ["tensor", "amax", *_marked(methods, table.method), "scale"]
    rows = [
        [
            name,
            f"{entry.amax:.5g}",
            *(f"{entry.thresholds[key]:.5g}" for key in methods),
            f"{entry.scale:.5g}",
        ]
        for name, entry in table.tensors.items()
    ]
    return columns([header, *rows], right=range(1, len(header)))


def comparison_lines(comparison: Comparison, method: str) -> list[str]:
    """Two tables: the threshold of each method by tensor, then its error of the logits, or SQNR without gradients."""
    methods = list(next(iter(comparison.tensors.values())))
    header = ["tensor", *_marked(methods, method)]
    by_logits = bool(comparison.together)
    thresholds = [
        [name, *(f"{results[key].threshold:.4g}" for key in methods)]
        for name, results in comparison.tensors.items()
    ]
    errors = [
        [name, *(_error(results[key], by_logits) for key in methods)]
        for name, results in comparison.tensors.items()
    ]
    if by_logits:
        errors.append(["all together", *(f"{comparison.together[key]:.5f}" for key in methods)])
    title = (
        "expected relative RMS of the logits, with this tensor alone in INT8"
        if by_logits
        else "SQNR of the tensor in dB (--effort balanced estimates the error of the logits)"
    )
    right = range(1, len(header))
    lines = [
        "threshold",
        *columns([header, *thresholds], right=right),
        "",
        title,
        *columns([header, *errors], right=right),
    ]
    return [plain(line) for line in lines]


def _marked(methods: list[str], used: str) -> list[str]:
    """Names of ``methods``, with a star behind the one in use."""
    return [f"{name}*" if name == used else name for name in methods]


def _error(result: MethodResult, by_logits: bool) -> str:
    value, digits = (result.logits_rms, 5) if by_logits else (result.sqnr_db, 1)
    return "-" if value is None else f"{value:.{digits}f}"
