"""The menu of tiles: short, fitting, busy, and within what registers hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fused_kernels.candidates import (
    MOST,
    PROCESSORS,
    candidates,
    has_flat_form,
    needed_by,
    programs,
    registers_suffice,
    rivals,
)
from fused_kernels.gpus import HOPPER, SMALLEST, limit_of, limit_on
from fused_kernels.operands.geometry import Conv
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

WIDE = Problem("fprop", torch.bfloat16, 256, 14, 14, 256, 256, Conv(3, 3, 1, 1), "bn_relu", "moments")
POINTWISE = replace(WIDE, conv=Conv(1, 1))

problems = st.builds(
    Problem,
    kind=st.sampled_from(["fprop", "dgrad", "wgrad"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int8]),
    n=st.sampled_from([1, 2, 32, 256]),
    h=st.integers(7, 112),
    w=st.integers(7, 112),
    c=st.sampled_from([1, 3, 16, 24, 64, 100, 256, 2048]),
    k=st.sampled_from([1, 10, 16, 64, 128, 512, 2048]),
    conv=st.sampled_from([Conv(1, 1), Conv(1, 1, 2), Conv(3, 3, 1, 1), Conv(3, 3, 2, 1), Conv(7, 7, 2, 3)]),
    prologue=st.sampled_from(["identity", "bn_relu"]),
    epilogue=st.sampled_from(["store", "moments", "drelu", "stem_pool"]),
)


@given(problems, st.sampled_from([SMALLEST, limit_of(80), HOPPER]))
def test_candidates_are_few_distinct_and_fitting(problem: Problem, shared: int) -> None:
    found = candidates(problem, shared=shared)
    assert 1 <= len(found) <= MOST
    assert len(set(found)) == len(found)
    for tile in found:
        assert needed_by(tile, problem) <= shared
        assert registers_suffice(tile, problem)
        assert not tile.flat or has_flat_form(problem)


@given(problems)
def test_candidates_are_tiles_that_triton_takes(problem: Problem) -> None:
    for tile in candidates(problem):
        for size in (tile.m, tile.n, tile.k):
            assert size >= 16
            assert size & (size - 1) == 0
        assert tile.k * problem.dtype.itemsize <= 128
        assert tile.k >= 32 or problem.dtype != torch.int8
        assert tile.warps in {4, 8}


@given(problems)
def test_no_tile_is_twice_as_large_as_its_problem(problem: Problem) -> None:
    for tile in candidates(problem):
        assert tile.m <= max(64, 2 * problem.rows)
        assert tile.n < max(17, 2 * problem.cols)


@given(problems)
def test_the_first_candidate_is_not_flat(problem: Problem) -> None:
    assert not candidates(problem)[0].flat


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "128x128x32 8w 2s 128r"),
        ({"c": 64}, "64x128x64 4w 3s"),
        ({"conv": Conv(1, 1)}, "64x128x64 4w 3s 168r"),
        ({"kind": "dgrad", "prologue": "identity", "epilogue": "drelu"}, "128x128x64 8w 2s 128r"),
        ({"kind": "dgrad", "prologue": "identity", "epilogue": "drelu", "k": 64}, "64x128x64 4w 3s 168r"),
        ({"prologue": "identity"}, "128x128x64 8w 3s 128r"),
        ({"k": 64}, "128x64x64 8w 3s 128r"),
        ({"prologue": "identity", "epilogue": "bias_relu"}, "128x128x64 8w 3s 128r"),
        ({"prologue": "identity", "epilogue": "bias_residual_relu"}, "128x128x64 8w 3s"),
        ({"prologue": "identity", "epilogue": "bias_residual_relu", "conv": Conv(1, 1)}, "128x64x64 4w 3s"),
        ({"prologue": "identity", "epilogue": "requantize", "dtype": torch.int8}, "128x128x128 8w 3s"),
        ({"dtype": torch.float32}, "64x64x32 8w 3s"),
        ({"kind": "wgrad", "epilogue": "store"}, "128x128x64 8w 3s"),
        ({"kind": "wgrad", "epilogue": "dy", "conv": Conv(1, 1)}, "128x64x64 4w 3s"),
        (
            {"kind": "wgrad", "epilogue": "dy", "prologue": "identity", "conv": Conv(1, 1)},
            "256x64x32 8w 3s 128r",
        ),
    ],
)
def test_programs_share_a_processor(change: dict[str, object], name: str) -> None:
    assert candidates(replace(WIDE, **change))[0].name == name  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({}, ["128x128x64 8w 3s", "128x128x32 8w 2s 128r"]),
        (
            {"kind": "dgrad", "prologue": "identity", "epilogue": "drelu"},
            ["128x128x64 8w 3s", "128x128x64 8w 2s 128r"],
        ),
        ({"c": 64}, []),
        ({"k": 64}, []),
        ({"prologue": "identity"}, []),
        ({"prologue": "identity", "epilogue": "bias_relu"}, []),
        ({"dtype": torch.float32}, []),
    ],
)
def test_long_reductions_have_a_tile_of_each_kind(change: dict[str, object], names: list[str]) -> None:
    assert [tile.name for tile in rivals(replace(WIDE, **change))] == names  # type: ignore[arg-type]


@given(problems)
def test_tensor_cores_get_the_64_rows_that_a_hoppers_take(problem: Problem) -> None:
    if problem.kind != "wgrad" and problem.dtype != torch.float32:
        assert all(tile.m >= 64 for tile in candidates(problem))


def test_a_large_problem_keeps_every_processor_busy() -> None:
    assert all(programs(tile, WIDE) >= PROCESSORS for tile in candidates(WIDE))


def test_a_small_problem_gets_the_tiles_that_spread_it_most() -> None:
    single = replace(POINTWISE, n=1, h=7, w=7, c=2048, k=512)
    spread = [programs(tile, single) for tile in candidates(single)]
    assert spread == sorted(spread, reverse=True)
    assert spread[0] == 16
    assert min(spread) >= 8


def test_the_work_of_a_problem_is_counted() -> None:
    assert programs(Tile(128, 128, 64), WIDE) == 392 * 2
    assert programs(Tile(128, 128, 64), replace(WIDE, kind="dgrad", conv=Conv(3, 3, 2, 1))) == 4 * 98 * 2
    assert programs(Tile(128, 128, 64, splits=5), replace(WIDE, kind="wgrad")) == 2 * 2 * 9 * 5


def test_wide_windows_are_tried_in_both_forms() -> None:
    found = candidates(WIDE)
    assert {tile.flat for tile in found} == {False, True}
    half = len(found) // 2
    assert [replace(tile, flat=True) for tile in found[:half]] == found[half:]
    assert not any(tile.flat for tile in candidates(POINTWISE))


def test_reductions_are_split_as_far_as_processors_and_steps_allow() -> None:
    narrow = Problem("wgrad", torch.bfloat16, 256, 56, 56, 64, 64, Conv(1, 1))
    assert {tile.splits for tile in candidates(narrow)} == {132, 264, 528}
    assert candidates(narrow)[0].splits == 264, "two programs a processor, for a workspace of 8 MB beside 205"
    deep = Problem("wgrad", torch.bfloat16, 32, 14, 14, 256, 256, Conv(1, 1))
    assert programs(candidates(deep)[0], deep) <= PROCESSORS, (
        "one, for its workspace weighs as much as its operands"
    )
    short = Problem("wgrad", torch.bfloat16, 1, 7, 7, 64, 64, Conv(1, 1))
    assert {tile.splits for tile in candidates(short)} == {1}


@pytest.mark.parametrize(
    ("tile", "change", "suffices"),
    [
        (Tile(128, 128, 64, warps=8), {}, True),
        (Tile(128, 128, 64, warps=4), {}, False),
        (Tile(256, 128, 64, warps=8), {}, False),
        (Tile(256, 128, 64, warps=8), {"prologue": "identity", "epilogue": "bias_relu"}, True),
        (Tile(256, 128, 64, warps=8), {"kind": "dgrad", "prologue": "identity", "epilogue": "drelu"}, False),
        (Tile(256, 64, 64, warps=8), {}, False),
        (Tile(256, 64, 64, warps=8), {"conv": Conv(1, 1)}, True),
        (Tile(256, 64, 64, warps=8), {"prologue": "identity"}, True),
        (Tile(64, 64, 32, warps=4), {"dtype": torch.float32}, True),
        (Tile(128, 64, 32, warps=4), {"dtype": torch.float32}, False),
    ],
)
def test_tiles_that_spilled_when_compiled_are_none(
    tile: Tile, change: dict[str, object], suffices: bool
) -> None:
    assert registers_suffice(tile, replace(WIDE, **change)) is suffices  # type: ignore[arg-type]


def test_a_gpu_of_unknown_capability_gets_the_smallest_limit() -> None:
    assert limit_of(90) == 232_448
    assert limit_of(75) == SMALLEST
    assert limit_on(torch.device("meta")) == HOPPER


def test_a_gpu_has_the_limit_of_its_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    limit_on.cache_clear()
    assert limit_on(torch.device("cuda", 0)) == 101_376
    limit_on.cache_clear()
