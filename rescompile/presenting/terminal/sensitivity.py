"""Terminal output of ``rescompile sensitivity``: one aligned line a block, the most sensitive first."""

from __future__ import annotations

from rescompile.accuracy.sensitivity import SensitivityReport
from rescompile.presenting.terminal.table import columns
from rescompile.wording import plain


def print_sensitivity(report: SensitivityReport) -> None:
    """Print the ranking, the error with all blocks in INT8, and the notes."""
    print(*lines(report), sep="\n")


def lines(report: SensitivityReport) -> list[str]:
    """The report as text. Shares are of the sum of squares: that is how errors of blocks add up."""
    errors = {entry.block: entry.relative_rms for entry in report.blocks}
    total = sum(value**2 for value in errors.values()) or 1.0
    header = ["rank", "block", "relative RMS of the logits", "share"]
    header += ["expected of activations"] if report.expected else []
    rows = [
        [
            str(rank),
            block,
            f"{errors[block]:.5f}",
            f"{100 * errors[block] ** 2 / total:.1f} %",
            *([f"{report.expected[block]:.5f}"] if report.expected else []),
        ]
        for rank, block in enumerate(report.ranking, 1)
    ]
    images = f"{report.images} calibration images of {report.image_source}"
    text = [
        *columns([header, *rows], right=(0, 2, 3, 4)),
        f"all blocks in INT8: {report.together:.5f}",
        f"{report.model}, each block alone in INT8, on {images}",
        *(f"note: {note}" for note in report.notes),
    ]
    return [plain(line) for line in text]
