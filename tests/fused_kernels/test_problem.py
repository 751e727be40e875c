"""Problems, and the tiles that are chosen for them without a table."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fused_kernels.choice import choose, choosing, default_tile
from fused_kernels.operands.geometry import Conv
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

CPU = torch.device("cpu")
EXAMPLE = Problem("fprop", torch.float16, 2, 9, 7, 20, 24, Conv(3, 3, 2, 1), "bn_relu", "moments")


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    """Choosing is arithmetic."""


def test_the_sizes_of_each_product() -> None:
    fprop, dgrad, wgrad = (replace(EXAMPLE, kind=kind) for kind in ("fprop", "dgrad", "wgrad"))
    assert (fprop.rows, fprop.cols, fprop.depth) == (2 * 5 * 4, 24, 20)
    assert (dgrad.rows, dgrad.cols, dgrad.depth) == (2 * 5 * 4, 20, 24)
    assert (wgrad.rows, wgrad.cols, wgrad.depth) == (20, 24, 2 * 5 * 4)
    outputs = [problem.outputs for problem in (fprop, dgrad, wgrad)]
    assert outputs == [2 * 5 * 4 * 24, 2 * 9 * 7 * 20, 9 * 20 * 24]


def test_the_work_of_each_product() -> None:
    pixels = 2 * 5 * 4
    for kind in ("fprop", "dgrad", "wgrad"):
        assert replace(EXAMPLE, kind=kind).macs == pixels * 9 * 20 * 24
    chain = Problem("chain", torch.int8, 2, 9, 7, 32, 96, Conv(3, 3, 2, 1), following=40)
    assert (chain.rows, chain.cols, chain.depth) == (pixels, 96, 32)
    assert chain.macs == pixels * (9 * 32 * 32 + 32 * 96 + 96 * 40)
    assert chain.key == "chain int8 n2 9x7 32->96->40 3x3/2+1 identity store"


def test_rows_of_dgrad_are_those_of_its_largest_parity() -> None:
    assert replace(EXAMPLE, kind="dgrad", h=9, w=8).rows == 2 * 5 * 4
    assert replace(EXAMPLE, kind="dgrad", conv=Conv(1, 1)).rows == 2 * 9 * 7


def test_the_key_is_what_a_person_would_write() -> None:
    assert EXAMPLE.key == "fprop float16 n2 9x7 20->24 3x3/2+1 bn_relu moments"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "dgrad"},
        {"dtype": torch.bfloat16},
        {"n": 3},
        {"h": 8},
        {"w": 8},
        {"c": 21},
        {"k": 25},
        {"conv": Conv(1, 3, 2, 1)},
        {"conv": Conv(3, 3, 1, 1)},
        {"conv": Conv(3, 3, 2, 0)},
        {"prologue": "identity"},
        {"epilogue": "store"},
        {"following": 20},
    ],
)
def test_problems_that_differ_have_different_keys(change: dict[str, object]) -> None:
    assert replace(EXAMPLE, **change).key != EXAMPLE.key  # type: ignore[arg-type]


problems = st.builds(
    Problem,
    kind=st.sampled_from(["fprop", "dgrad", "wgrad"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int8]),
    n=st.sampled_from([1, 2, 32, 256]),
    h=st.integers(7, 224),
    w=st.integers(7, 224),
    c=st.integers(1, 2048),
    k=st.integers(1, 2048),
    conv=st.sampled_from([Conv(1, 1), Conv(1, 1, 2), Conv(3, 3, 1, 1), Conv(3, 3, 2, 1), Conv(7, 7, 2, 3)]),
)


@given(problems)
def test_default_tiles_are_ones_that_triton_takes(problem: Problem) -> None:
    tile = default_tile(problem)
    for size in (tile.m, tile.n, tile.k):
        assert size >= 16
        assert size & (size - 1) == 0
    assert tile.m * tile.n <= 128 * 128
    assert tile.k >= 32 or problem.dtype != torch.int8
    assert tile.splits >= 1
    assert not tile.flat


def test_what_the_caller_forces_comes_first() -> None:
    forced = Tile(16, 16, 16)
    with choosing(lambda problem: forced if problem.kind == "fprop" else None):
        assert choose(EXAMPLE, CPU) == forced
        assert choose(replace(EXAMPLE, kind="wgrad"), CPU) == default_tile(replace(EXAMPLE, kind="wgrad"))
    assert choose(EXAMPLE, CPU) == default_tile(EXAMPLE)


def test_the_inner_choice_hides_the_outer_one() -> None:
    with choosing(lambda _: Tile(16, 16, 16)):
        with choosing(lambda _: "reference"):
            assert choose(EXAMPLE, CPU) == "reference"
        assert choose(EXAMPLE, CPU) == Tile(16, 16, 16)
