"""Tiles are chosen by the caller, by the GPU's table, by shape and by what the GPU holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fused_kernels import choice
from fused_kernels.candidates import candidates
from fused_kernels.choice import REFERENCE, choose, choosing, default_tile
from fused_kernels.gpus import SMALLEST, limit_of, limit_on
from fused_kernels.operands.geometry import Conv
from fused_kernels.problem import Problem
from fused_kernels.table import Entries
from fused_kernels.tiles import Tile

WIDE = Problem("fprop", torch.bfloat16, 256, 14, 14, 256, 256, Conv(3, 3, 1, 1), "bn_relu", "moments")
GPU = torch.device("cuda", 0)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[Entries]:
    """The table of a GPU that is not there, an RTX 4090 by its capability."""
    entries: Entries = {}
    monkeypatch.setattr(choice, "current_table", lambda device: entries)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    limit_on.cache_clear()
    yield entries
    limit_on.cache_clear()


def test_the_table_decides_on_a_gpu_and_nowhere_else(table: Entries) -> None:
    table[WIDE.key] = Tile(64, 64, 64, flat=True)
    assert choose(WIDE, GPU) == Tile(64, 64, 64, flat=True)
    assert choose(WIDE, torch.device("cpu")) == default_tile(WIDE)
    table[WIDE.key] = REFERENCE
    assert choose(WIDE, GPU) == REFERENCE


def test_a_caller_decides_over_the_table(table: Entries) -> None:
    table[WIDE.key] = REFERENCE
    with choosing(lambda problem: Tile(32, 32, 32)):
        assert choose(WIDE, GPU) == Tile(32, 32, 32)
    with choosing(lambda problem: None):
        assert choose(WIDE, GPU) == REFERENCE


def test_a_problem_without_entry_gets_a_tile_that_the_gpu_holds(table: Entries) -> None:
    assert (
        choose(WIDE, GPU) == default_tile(WIDE, shared=limit_of(89)) == candidates(WIDE, shared=SMALLEST)[0]
    )


def test_the_default_is_the_first_candidate() -> None:
    assert default_tile(WIDE) == candidates(WIDE)[0] == Tile(128, 128, 32, warps=8, stages=2, registers=128)
