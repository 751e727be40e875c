"""The blocks that a failed verdict names are those that add the error, not those that inherit it."""

from __future__ import annotations

from rescompile.accuracy.advice import costly_blocks, next_steps
from rescompile.report import BlockDamage, BlockError, Check
from tests.reports import report

DECIBELS = {"stem": 42.0, "layer1.0": 41.0, "layer2.0": 25.0, "layer3.0": 24.5, "fc": 30.0}
BLOCKS = tuple(BlockError(name, db, 0.999) for name, db in DECIBELS.items())


def test_without_damages_the_growth_of_the_error_counts() -> None:
    found = costly_blocks(report(blocks=BLOCKS, damages=(), fp16_blocks=()))
    assert found[:2] == ("layer2.0", "layer3.0"), "fc inherits its error and even averages it"
    assert "fc" not in found


def test_measured_damages_count_first_and_blocks_in_fp16_are_not_blamed() -> None:
    damages = tuple(
        BlockDamage(name, rms) for name, rms in [("stem", 0.01), ("layer2.0", 0.02), ("fc", 0.004)]
    )
    assert costly_blocks(report(blocks=BLOCKS, damages=damages, fp16_blocks=("layer2.0",))) == ("stem", "fc")


def test_a_failed_verdict_names_them_and_the_command_that_measures() -> None:
    failed = (Check("relative RMS", "at most 0.02", "0.03", False),)
    found = report(
        passed=False,
        checks=failed,
        precision="int8",
        blocks=BLOCKS,
        damages=(),
        fp16_blocks=(),
        frontier=(),
    )
    steps = next_steps(found, images=None)
    assert any("`rescompile sensitivity` shows what each block costs" in step for step in steps)
    assert any(step.startswith("look at the blocks that add the most error: layer2.0") for step in steps)
