"""The profiles in ``docs/performance.md``: time by block beside its floor, engines side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rescompile.measuring.profile_report import BlockProfile, EngineProfile, ProfileReport


def profile_lines(report: ProfileReport, link: str) -> Iterator[str]:
    """Markdown of one profile; ``link`` leads to its raw results."""
    source, engines = report.origin, report.engines
    yield f"### {engines[0].engine.model}, {source.device}, {source.threads} threads\n"
    yield (
        f"[Raw results]({link}), commit `{source.commit}`, {source.date[:10]}, batch {report.batch}. A call takes "
        f"{', '.join(_call(engine) for engine in engines)}.\n"
    )
    names = [engine.engine.precision for engine in engines]
    cells = ["block", *(f"{name} {figure}" for name in names for figure in ("ms", "floor ms", "x floor"))]
    yield f"| {' | '.join(cells)} |"
    yield "|---" * len(cells) + "|"
    for row in zip(*(engine.blocks for engine in engines), strict=True):
        yield f"| {row[0].block} | {' | '.join(_block(block) for block in row)} |"
    yield ""
    yield from (f"- {finding}" for finding in (*report.findings, *report.notes))
    yield ""


def missing_lines(words: str) -> Sequence[str]:
    """The table to show while no profile was measured."""
    return (
        "| block | ms | floor ms | x floor |\n|---|---|---|---|",
        f"| ResNet-50 INT8 | {words} | {words} | {words} |",
        "",
    )


def _call(engine: EngineProfile) -> str:
    return f"{engine.wall.p50:.3g} ms in {engine.engine.precision}"


def _block(block: BlockProfile) -> str:
    """Cells of one block; one without work in this precision has no floor."""
    times = f"{block.ms / block.floor_ms:.1f}" if block.floor_ms else ""
    return f"{block.ms:.3f} | {block.floor_ms:.3f} | {times}"
