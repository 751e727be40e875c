"""Problems of a compiled kernel are found and shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.compiled_kernels.compiled import Compiled
from benchmarks.compiled_kernels.report import (
    Row,
    as_markdown,
    as_text,
    expected_instructions,
    ordered,
    summary,
)
from benchmarks.compiled_kernels.sass import Machine
from benchmarks.compiled_kernels.units import Unit
from fused_kernels.compiling.variant import Variant
from fused_kernels.gpus import TARGETS
from fused_kernels.tiles import Tile

TILE = Tile(128, 64, 64, warps=4, stages=3)
VARIANT = Variant(
    "conv.conv_kernel",
    (("x_ptr", "*bf16"), ("BLOCK_M", "constexpr")),
    (((1,), 128),),
    (),
    tuple(TILE.options.items()),
    True,
)
UNIT = Unit("conv_moments 3x3", "bfloat16", "conv.conv_kernel", TILE, VARIANT)
GOOD = Compiled(
    VARIANT, "sm_90", registers=168, shared=99328, machine=Machine(0, {"HGMMA": 4}, 24), seconds=1.0
)

AMPERE_CODE, BLACKWELL_CODE = Machine(0, {"HMMA": 1}), Machine(0, {"UTCHMMA": 1})


def row(target: str = "sm_90", unit: Unit = UNIT, **changes: Any) -> Row:
    """``GOOD``, changed."""
    return Row(unit, TARGETS[target], replace(GOOD, target=target, **changes))


def test_a_good_kernel_has_no_problems() -> None:
    assert row().problems == []


@pytest.mark.parametrize(
    ("target", "changes", "problem"),
    [
        ("sm_90", {"error": "CompilationError: no"}, "CompilationError: no"),
        ("sm_90", {"machine": Machine(12, {"HGMMA": 4}, 24, 20)}, "20 bytes of registers spilled, more than 16"),
        ("sm_90", {"shared": 232_449}, "232449 bytes of shared memory, 232448 exist"),
        ("sm_80", {"shared": 166_913, "machine": AMPERE_CODE}, "166913 bytes of shared memory, 166912 exist"),
        ("sm_120", {"shared": 101_377, "machine": AMPERE_CODE}, "101377 bytes of shared memory, 101376 exist"),
        ("sm_90", {"machine": Machine(0, {"HMMA": 4}, 24)}, "no HGMMA instruction"),
        ("sm_86", {"machine": Machine(0, {}, 24)}, "no HMMA instruction"),
        ("sm_100", {"tensor_memory": 1024, "machine": BLACKWELL_CODE}, "1024 columns of tensor memory, 512 exist"),
    ],
)  # fmt: skip
def test_every_kind_of_problem_is_found(target: str, changes: dict[str, Any], problem: str) -> None:
    assert row(target, **changes).problems == [problem]


def test_spills_are_an_error_on_hopper_alone() -> None:
    assert row("sm_80", machine=Machine(12, {"HMMA": 4}, 24, 20)).problems == []
    assert row("sm_90", machine=Machine(12, {"HGMMA": 4}, 24, 16)).problems == []


@pytest.mark.parametrize(
    ("dtype", "rows", "target", "expected"),
    [
        ("bfloat16", 128, "sm_90", {"HGMMA"}),
        ("bfloat16", 32, "sm_90", {"HGMMA", "HMMA"}),
        ("int8", 64, "sm_90", {"IGMMA"}),
        ("int8", 32, "sm_90", {"IGMMA", "IMMA"}),
        ("tf32", 128, "sm_90", {"HGMMA", "HMMA"}),
        ("float32", 128, "sm_90", set()),
        ("int8", 128, "sm_80", {"IMMA"}),
        ("float16", 128, "sm_100", {"UTCHMMA"}),
    ],
)
def test_which_instructions_are_expected(dtype: str, rows: int, target: str, expected: set[str]) -> None:
    unit = replace(UNIT, dtype=dtype, variant=replace(VARIANT, constants=(((1,), rows),)))
    assert expected_instructions(unit, TARGETS[target]) == expected


def test_a_kernel_that_multiplies_nothing_needs_no_tensor_core() -> None:
    assert not expected_instructions(replace(UNIT, kernel="passes.join_kernel"), TARGETS["sm_90"])


def test_the_table_is_aligned_and_says_what_is_wrong() -> None:
    header, good, bad = as_text([row(), row(shared=300_000)]).splitlines()
    assert header.split("  ")[0] == "target"
    assert "128x64x64 4w 3s" in good
    assert good.endswith("4 HGMMA                  24  ok")
    assert bad.endswith("24  300000 bytes of shared memory, 232448 exist")
    assert header.index("verdict") == good.index("ok") == bad.index("300000")


def test_rows_are_ordered_by_target_and_kernel() -> None:
    other = replace(UNIT, kernel="chain.chain_kernel")
    rows = [row("sm_120"), row("sm_90"), row("sm_90", other)]
    assert [(r.target.name, r.unit.kernel) for r in ordered(rows)] == [
        ("sm_90", "chain.chain_kernel"),
        ("sm_90", "conv.conv_kernel"),
        ("sm_120", "conv.conv_kernel"),
    ]


def test_json_holds_what_was_measured_and_the_verdict() -> None:
    data = row(machine=Machine(8, {"HGMMA": 4}, 24, 32)).to_json()
    assert data["registers"] == 168
    assert data["tile"]["m"] == 128
    assert data["expects_tensor_core"] == ["HGMMA"]
    assert data["problems"] == ["32 bytes of registers spilled, more than 16"]


def test_markdown_has_a_table_for_each_target() -> None:
    page = as_markdown([row(), row("sm_80", machine=Machine(1, {"HMMA": 64}))], "3.6.0", "the command")
    assert page.count("\n## sm_") == 2
    assert "Written by `the command` with Triton 3.6.0" in page
    assert (
        "| conv | conv_moments 3x3 | bfloat16 | 128x64x64 4w 3s | 168 | 0 | 97.0 | 4 HGMMA | 24 | ok |"
        in page
    )


def test_the_summary_counts() -> None:
    assert summary([row(), row(shared=300_000)]) == (
        "sm_90: 2 compiled, 1 wrong, 0 with spills; at most 168 registers and 293 of 227 KB of shared memory."
    )
