"""Terminal output of ``rescompile compare``: one aligned line a block, and where the two diverge."""

from __future__ import annotations

from rescompile.accuracy.compare import BlockComparison, Comparison, ComparisonReport, Saturation
from rescompile.presenting.terminal.table import columns
from rescompile.wording import plain


def print_comparison(report: ComparisonReport) -> None:
    """Print each comparison as a table below the names of A and B, then the notes."""
    for comparison in report.comparisons:
        print(*lines(comparison), "", sep="\n")
    print(plain(f"measured on {report.images} images of {report.image_source}"))
    for note in report.notes:
        print(plain(f"note: {note}"))


def lines(comparison: Comparison) -> list[str]:
    """One comparison as text."""
    blocks = comparison.blocks
    saturated = {
        "saturated in A": [block.saturation_a for block in blocks],
        "saturated in B": [block.saturation_b for block in blocks],
    }
    shown = {name: column for name, column in saturated.items() if any(column)}
    rows = [
        [
            block.block,
            f"{block.sqnr_db:.1f}",
            f"{block.cosine:.6f}",
            *(_saturation(column[index]) for column in shown.values()),
            _remark(comparison, block),
        ]
        for index, block in enumerate(blocks)
    ]
    header = ["block", "SQNR dB", "cosine", *shown, ""]
    text = [f"A  {comparison.a}", f"B  {comparison.b}", *columns([header, *rows], right=(1, 2))]
    if comparison.parts_at is None:
        text.append(f"A and B do not diverge: no block is below {comparison.part_db:g} dB")
    else:
        text.append(
            f"A and B diverge at {comparison.parts_at}, the first block below {comparison.part_db:g} dB"
        )
    if (drop := comparison.largest_drop) is not None:
        text.append(f"largest drop: {drop.drop_db:.1f} dB from {drop.after} to {drop.block}")
    return [plain(line) for line in text]


def _saturation(found: Saturation | None) -> str:
    if found is None:
        return ""
    return f"{100 * found.share:.3f} % {found.tensor}" if found.share else "none"


def _remark(comparison: Comparison, block: BlockComparison) -> str:
    drop = comparison.largest_drop
    remarks = {
        "<- diverges here": block.block == comparison.parts_at,
        "<- largest drop": drop is not None and block.block == drop.block,
        "infinite or NaN values": not block.finite,
    }
    return ", ".join(remark for remark, applies in remarks.items() if applies)
