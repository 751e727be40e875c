"""What ``rescompile sensitivity`` prints: one aligned line a block, most damage first."""

from __future__ import annotations

from rescompile.accuracy.sensitivity import SensitivityReport
from rescompile.presenting.terminal.views import columns
from rescompile.wording import plain


def print_sensitivity(report: SensitivityReport) -> None:
    """The ranking, what all blocks do together, and the notes."""
    print(*lines(report), sep="\n")


def lines(report: SensitivityReport) -> list[str]:
    """The report as text. Shares are of the sum of squares: errors of blocks add up about so."""
    damage = {entry.block: entry.relative_rms for entry in report.blocks}
    total = sum(value**2 for value in damage.values()) or 1.0
    rows = [
        [
            str(rank),
            block,
            f"{damage[block]:.5f}",
            f"{100 * damage[block] ** 2 / total:.1f} %",
            *([f"{report.expected[block]:.5f}"] if report.expected else []),
        ]
        for rank, block in enumerate(report.ranking, 1)
    ]
    header = ["rank", "block", "relative RMS of the logits", "share"]
    header += ["expected of activations"] if report.expected else []
    return [
        *(plain(line) for line in columns([header, *rows], right=(0, 2, 3, 4))),
        f"all blocks in INT8: {report.together:.5f}",
        plain(
            f"{report.model}, each block alone in INT8, on {report.images} calibration images of {report.image_source}"
        ),
        *(plain(f"note: {note}") for note in report.notes),
    ]
