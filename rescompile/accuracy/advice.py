"""Advice on a failed verdict: options to try, blocks to blame, images to look at."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from calibration.file_names import text_of
from rescompile.report import BuildReport

WORST_BLOCKS = 3
"""Blocks that are named."""


SPEED = "speed"
"""Name of the check of the speed-up."""


def next_steps(
    report: BuildReport, *, images: Path | None, pointless: Collection[str] = ()
) -> tuple[str, ...]:
    """Next steps after a failed verdict, the most promising one first; none where the labels do not fit.

    Args:
        report: without advice.
        images: the validation set, for commands that can be copied.
        pointless: options that were tried, or that the backend or the configuration does not allow.
    """
    if report.passed or report.misfit is not None:
        return ()
    failed = {check.name for check in report.checks if not check.passed}
    if failed == {SPEED}:
        return _faster(report)
    steps = []
    if report.precision == "int8":
        if "--effort best" not in pointless:
            steps.append("build with --effort best, which calibrates longer and loses less")
        if "--fp16-blocks" not in pointless and not report.frontier:
            steps.append(
                "build with --fp16-blocks auto, --validation-set and a limit, which leaves as few blocks in FP16 as "
                "meet the limit; `rescompile sensitivity` shows what each block costs, if you would rather name them"
            )
    elif report.precision == "fp16":
        steps.append("build with --precision fp32, which rounds nothing")
    if costly := costly_blocks(report):
        steps.append(f"look at the blocks that add the most error: {', '.join(costly)}")
    if report.flips:
        flip = report.flips[0]
        steps.append(
            f"look at the images whose class changed, such as {flip.image} ({flip.reference} became {flip.engine}); "
            "report.json has the first hundred under flips"
        )
    where = text_of(images) if images is not None else "PATH"
    steps.append(
        f"run `rescompile compare {report.engine_directory} --images {where}` to see where the error begins"
    )
    return tuple(steps)


def costly_blocks(report: BuildReport) -> tuple[str, ...]:
    """The quantized blocks that add the most error, the worst one first, at most ``WORST_BLOCKS``.

    A build with ``--fp16-blocks auto`` has measured each block's damage. Otherwise a block's own error is estimated by
    the growth of the relative error's square over the block before it: errors accumulate along a network, so the last
    blocks have the lowest SQNR whatever they add.
    """
    added = {entry.block: entry.relative_rms for entry in report.damages}
    if not added:
        noise = [10 ** (-block.sqnr_db / 10) for block in report.blocks]
        growth = [own - before for own, before in zip(noise, [0.0, *noise], strict=False)]
        added = {block.block: grown for block, grown in zip(report.blocks, growth, strict=True) if grown > 0}
    quantized = (block for block in added if block not in report.fp16_blocks)
    return tuple(sorted(quantized, key=lambda block: -added[block])[:WORST_BLOCKS])


def _faster(report: BuildReport) -> tuple[str, ...]:
    """Next steps for an engine that is right and not fast enough."""
    steps = []
    if report.speed is not None and report.speed.disturbances:
        steps.append(
            "measure again on an idle machine (`rescompile verify`): these times may be unstable, and the report says "
            "why"
        )
    if report.fp16_blocks:
        steps.append(
            f"build with --effort best: {len(report.fp16_blocks)} blocks stay in FP16 to meet the other limits, and "
            "fewer may have to"
        )
    if report.precision == "int8":
        steps.append(
            "build with a larger --batch: at one image, time between layers can outweigh the arithmetic"
        )
    steps.append(
        "build a second engine with --precision fp32 and run `rescompile profile` on both to see which blocks gain "
        "nothing"
    )
    return tuple(steps)
