"""What ``rescompile compare`` prints: one aligned line a block, and where the sides part."""

from __future__ import annotations

from rescompile.accuracy.compare import BlockComparison, Comparison, ComparisonReport, Saturation
from rescompile.presenting.terminal.views import columns
from rescompile.wording import plain


def print_comparison(report: ComparisonReport) -> None:
    """Each comparison as a table below the names of its sides, then the notes."""
    for comparison in report.comparisons:
        print(*lines(comparison), "", sep="\n")
    print(plain(f"measured on {report.images} images of {report.image_source}"))
    for note in report.notes:
        print(plain(f"note: {note}"))


def lines(comparison: Comparison) -> list[str]:
    """One comparison as text, headline first."""
    shown = [
        (name, column)
        for name, column in (
            ("saturated in A", [block.saturation_a for block in comparison.blocks]),
            ("saturated in B", [block.saturation_b for block in comparison.blocks]),
        )
        if any(column)
    ]
    header = ["block", "SQNR dB", "cosine", *(name for name, _ in shown), ""]
    rows = [
        [
            block.block,
            f"{block.sqnr_db:.1f}",
            f"{block.cosine:.6f}",
            *(_saturation(column[index]) for _, column in shown),
            _remark(comparison, block),
        ]
        for index, block in enumerate(comparison.blocks)
    ]
    return [
        plain(f"A  {comparison.a}"),
        plain(f"B  {comparison.b}"),
        *columns([header, *rows], right=(1, 2)),
        _verdict(comparison),
        *_drop(comparison),
    ]


def _saturation(found: Saturation | None) -> str:
    if found is None or found.share == 0:
        return "" if found is None else "none"
    return f"{100 * found.share:.3f} % {found.tensor}"


def _remark(comparison: Comparison, block: BlockComparison) -> str:
    remarks = []
    if block.block == comparison.parts_at:
        remarks.append("<- parts here")
    if comparison.largest_drop is not None and block.block == comparison.largest_drop.block:
        remarks.append("<- largest drop")
    if not block.finite:
        remarks.append("infinite or NaN values")
    return ", ".join(remarks)


def _verdict(comparison: Comparison) -> str:
    if comparison.parts_at is None:
        return f"they do not part: no block is below {comparison.part_db:g} dB"
    return f"they part at {comparison.parts_at}, the first block below {comparison.part_db:g} dB"


def _drop(comparison: Comparison) -> list[str]:
    drop = comparison.largest_drop
    return [] if drop is None else [f"largest drop: {drop.drop_db:.1f} dB from {drop.after} to {drop.block}"]
