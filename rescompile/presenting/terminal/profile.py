"""Terminal output of ``rescompile profile``: one line a block, engines side by side, then the findings."""

from __future__ import annotations

from rescompile.measuring.profile_report import BlockProfile, EngineProfile, ProfileReport
from rescompile.presenting.terminal.table import columns
from rescompile.wording import plain


def print_profile(report: ProfileReport) -> None:
    """Print the table, the findings and the notes."""
    print(*lines(report), sep="\n")


def lines(report: ProfileReport) -> list[str]:
    """The report as text."""
    rates = report.roofline
    table = _one(report.engines[0]) if len(report.engines) == 1 else _side_by_side(report.engines)
    text = [
        *(_title(engine) for engine in report.engines),
        *table,
        *(f"finding: {finding}" for finding in report.findings),
        f"floors at {rates.memory_bytes_per_second / 1e9:.1f} GB/s from memory, "
        f"{rates.cache_bytes_per_second / 1e9:.1f} GB/s from cache, "
        f"{rates.float_ops_per_second / 1e9:.0f} Gop/s in fp32, {rates.int8_ops_per_second / 1e9:.0f} Gop/s in int8",
        *(f"note: {note}" for note in report.notes),
    ]
    return [plain(line) for line in text]


def _title(engine: EngineProfile) -> str:
    facts = engine.engine
    return f"{facts.precision}  {facts.directory}: {engine.wall.p50:.3f} ms a call, {engine.layers_ms:.3f} ms in layers"


def _one(engine: EngineProfile) -> list[str]:
    header = ["block", "ms", "share", "launches", "reformats", "Mop", "MB", "floor ms", "x floor", "bound by"]
    total = engine.layers_ms or 1.0
    rows = [
        [
            block.block,
            f"{block.ms:.3f}",
            f"{100 * block.ms / total:.1f} %",
            str(block.launches),
            f"{block.reformat_ms:.3f}" if block.reformat_ms else "",
            f"{block.work.ops / 1e6:.1f}",
            f"{block.work.bytes / 1e6:.3f}",
            f"{block.floor_ms:.3f}",
            _times_floor(block),
            block.bound,
        ]
        for block in engine.blocks
    ]
    return columns([header, *rows], right=range(1, 9))


def _side_by_side(engines: tuple[EngineProfile, ...]) -> list[str]:
    names = [engine.engine.precision for engine in engines]
    header = ["block", "Mop"]
    header += [f"{name} {figure}" for name in names for figure in ("ms", "MB", "x floor", "launches")]
    rows = []
    for blocks in zip(*(engine.blocks for engine in engines), strict=True):
        row = [blocks[0].block, f"{blocks[0].work.ops / 1e6:.1f}"]
        for block in blocks:
            row += [
                f"{block.ms:.3f}",
                f"{block.work.bytes / 1e6:.3f}",
                _times_floor(block),
                str(block.launches),
            ]
        rows.append(row)
    return columns([header, *rows], right=range(1, len(header)))


def _times_floor(block: BlockProfile) -> str:
    return f"{block.ms / block.floor_ms:.1f}" if block.floor_ms else ""
