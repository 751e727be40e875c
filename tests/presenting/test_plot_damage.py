"""What is promised of the plots about blocks in FP16."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from rescompile.presenting.plots import damage
from rescompile.report import BlockDamage
from tests.reports import frontier

DAMAGES = tuple(BlockDamage(f"layer1.{index}", 0.01 * (index % 5 + 1)) for index in range(9))


def words(svg: str) -> list[str]:
    return [
        "".join(node.itertext()).strip() for node in ET.fromstring(svg).iter() if node.tag.endswith("text")
    ]


def test_the_block_with_the_most_damage_is_marked_with_its_figure() -> None:
    shown = words(damage.damage_by_block(DAMAGES))
    assert "most damage: layer1.4, 0.0500" in shown
    assert {entry.block for entry in DAMAGES} <= set(shown)


@pytest.mark.parametrize("damages", [(BlockDamage("stem", 0.0),), DAMAGES * 20])
def test_one_block_without_damage_and_many_blocks_can_be_drawn(damages: tuple[BlockDamage, ...]) -> None:
    svg = damage.damage_by_block(damages)
    assert "relative RMS of the logits" in words(svg)
    assert svg == damage.damage_by_block(damages)


def test_the_suffix_chooses_svg_or_png(tmp_path: Path) -> None:
    damage.write_plot(DAMAGES, tmp_path / "a.svg")
    damage.write_plot(DAMAGES, tmp_path / "a.PNG")
    assert (tmp_path / "a.svg").read_text().startswith("<svg ")
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")


def test_every_point_of_a_frontier_names_its_reformats_while_there_is_room() -> None:
    shown = words(damage.frontier(frontier(3)))
    assert {"0 reformats", "3 reformats", "1 reformat", "blocks in INT8", "misses a limit"} <= set(shown)
    assert not any(
        " reformat" in word or "reformats" in word for word in words(damage.frontier(frontier(13)))
    )
