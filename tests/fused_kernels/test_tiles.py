"""Tiles as data."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fused_kernels.errors import TuningError
from fused_kernels.tiles import Tile


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    """A tile is a few numbers."""


@pytest.mark.parametrize(
    "tile",
    [Tile(64, 32), Tile(256, 128, 64, warps=8, stages=5, flat=True, group=1, splits=32, registers=128)],
)
def test_a_tile_survives_json(tile: Tile) -> None:
    assert Tile.from_json(json.loads(json.dumps(tile.to_json()))) == tile


def test_a_tile_has_a_name_for_people() -> None:
    assert Tile(256, 128, 64, warps=8, stages=5, flat=True, splits=3).name == "256x128x64 8w 5s flat"
    assert Tile(1024, 1).name == "1024x1 4w 3s"
    assert Tile(64, 64, 64, registers=128, flat=True).name == "64x64x64 4w 3s 128r flat"


def test_only_a_limit_of_registers_becomes_an_option() -> None:
    assert Tile(64, 32, warps=8).options == {"num_warps": 8, "num_stages": 3}
    assert Tile(64, 32, registers=96).options == {"num_warps": 4, "num_stages": 3, "maxnreg": 96}


def test_an_older_table_may_leave_fields_out() -> None:
    assert Tile.from_json({"m": 64, "n": 32}) == Tile(64, 32)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"m": 64, "n": 32, "warp": 4}, "a tile has no field 'warp'"),
        ({"m": 64}, "m and n are required"),
        ({"n": 64}, "m and n are required"),
        ({}, "m and n are required"),
        ({"m": "64", "n": 32}, "every field is a whole number"),
        ({"m": 64.5, "n": 32}, "every field is a whole number"),
        ({"m": 64, "n": None}, "every field is a whole number"),
    ],
)
def test_what_is_no_tile_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(TuningError, match=message):
        Tile.from_json(data)
