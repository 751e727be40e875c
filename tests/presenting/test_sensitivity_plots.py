"""Plots about blocks in FP16: their sensitivity, and the search for them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from msgspec.structs import replace

from rescompile.presenting.plots.figure import new_axes
from rescompile.presenting.plots.precision_search import precision_search
from rescompile.presenting.plots.sensitivity import sensitivity_by_block
from rescompile.report import BlockDamage
from tests.reports import frontier

DAMAGES = tuple(BlockDamage(f"layer1.{index}", 0.01 * (index % 5 + 1)) for index in range(9))


def words(svg: str) -> list[str]:
    return [
        "".join(node.itertext()).strip() for node in ET.fromstring(svg).iter() if node.tag.endswith("text")
    ]


def test_the_most_sensitive_block_is_marked_with_its_figure() -> None:
    shown = words(sensitivity_by_block(DAMAGES).svg())
    assert "most sensitive: layer1.4, 0.0500" in shown
    assert {entry.block for entry in DAMAGES} <= set(shown)


@pytest.mark.parametrize("damages", [(BlockDamage("stem", 0.0),), DAMAGES * 20])
def test_one_block_without_error_and_many_blocks_can_be_drawn(damages: tuple[BlockDamage, ...]) -> None:
    svg = sensitivity_by_block(damages).svg()
    assert "relative RMS of the logits" in words(svg)
    assert svg == sensitivity_by_block(damages).svg()


def test_the_suffix_chooses_svg_or_png(tmp_path: Path) -> None:
    sensitivity_by_block(DAMAGES).write(tmp_path / "a.svg")
    sensitivity_by_block(DAMAGES).write(tmp_path / "a.PNG")
    assert (tmp_path / "a.svg").read_text().startswith("<svg ")
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")


def test_every_point_of_a_frontier_names_its_reformats_while_there_is_room() -> None:
    shown = words(precision_search(frontier(3)).svg())
    assert {"0", "3", "1", "blocks in INT8", "misses a limit"} <= set(shown)
    unlabelled, labelled = (
        precision_search([replace(point, reformats=7777) for point in frontier(count)]).svg()
        for count in (13, 12)
    )
    assert "7777" in words(labelled)
    assert "7777" not in words(unlabelled)


def test_labels_of_points_that_lie_close_together_are_not_printed_over_each_other() -> None:
    first, *_ = frontier(3)
    twins = [replace(first, reformats=number) for number in (7777, 8888)]
    shown = words(precision_search(twins).svg())
    assert ("7777" in shown, "8888" in shown) == (True, False)


def test_the_axis_of_a_share_ends_at_100_percent() -> None:
    axes = new_axes(320, 720)[1]
    precision_search(frontier(3)).draw(axes)
    assert axes.get_ylim()[1] == 100.0
