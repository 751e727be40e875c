"""Every kernel compiles, for every GPU, as well as it must: on sm_90 with every tile that the tuner may choose.

To stay within half a minute of two cores, this compiles on sm_90 every functor in bf16 and int8 with its default tile
and the call that passes it the most arguments, and the functors that need the most registers with the largest of their
tiles, where a wrong rule for candidates spills or runs out of shared memory first. On the other targets it compiles one
call for each kernel and type, so that each type is compiled for one target and each kind of tensor core in one type;
kernels without products are the same code on every target, so types that sm_90 has are left out.
With FUSED_KERNELS_EXHAUSTIVE=1 it compiles every tile of every functor on sm_90, and default tiles for all targets, in
every type. scripts/compile-with-newest-triton.sh compiles all of it, and on the newest Triton too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.compiled_kernels.catalogue import catalogue
from benchmarks.compiled_kernels.compiled import compile_in_processes
from benchmarks.compiled_kernels.operands import Plane, activation, weight
from benchmarks.compiled_kernels.report import Row
from benchmarks.compiled_kernels.units import Configs, Unit, units_of
from fused_kernels.candidates import needed_by
from fused_kernels.choice import choosing
from fused_kernels.compiling.pool import default_jobs
from fused_kernels.compiling.variant import variant_of
from fused_kernels.gpus import TARGETS
from fused_kernels.launch import recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import convolution
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile

# one worker compiles for all of these tests, on every core
pytestmark = pytest.mark.slow

EXHAUSTIVE = os.environ.get("FUSED_KERNELS_EXHAUSTIVE") == "1"
NARROW: tuple[str, ...] = ("bfloat16", "int8")
OTHERS: dict[str, tuple[str, ...]] = {"sm_80": ("int8", "float32"), "sm_100": ("bfloat16",)}
"""One of each kind of tensor core (mma, tcgen05), and the types that are compiled for it."""
if EXHAUSTIVE:
    NARROW = ()
    OTHERS = dict.fromkeys(("sm_80", "sm_86", "sm_89", "sm_100", "sm_120"), ())
HEAVIEST = (
    "dgrad_block ?x? + shortcut/2, projection",
    "conv_int8 1x1 + residual + ReLU",
    "conv_int8 3x3, full range + residual + ReLU",
    "conv_bias 3x3 + ReLU",  # no second tensor and no sums: tiles that are too large for all others
    "conv_int8 ?x? + ReLU",
    "chain 128 + next 1x1",
    "wgrad 3x3 of relu(bn(x))",
    "stem_conv_moments*",
    "stem_inference ?x?*",
)
"""Operations whose kernels are compiled with more than their default tile."""
PRODUCTS = {
    "conv.conv_kernel",
    "chain.chain_kernel",
    "wgrad.wgrad_kernel",
    "stem.conv_pool_kernel",
    "stem.stem_wgrad_kernel",
}
"""Kernels that use tensor cores, which differ between targets."""
LIMITS = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
}
"""Bytes of shared memory that a program may use: 163, 99, 99, 227, 227 and 99 KB."""

Kernels = list[dict[str, Any]]


def compiled(target: str, units: Iterable[Unit]) -> Kernels:
    """The JSON of each unit's row."""
    by_variant = {unit.variant: unit for unit in units}
    work = [(variant, TARGETS[target]) for variant in by_variant]
    done = compile_in_processes(work, default_jobs())
    return [Row(by_variant[found.variant], TARGETS[target], found).to_json() for found in done]


def units(target: str, configs: Configs, types: tuple[str, ...], *patterns: str) -> list[Unit]:
    """The compilations that the command would make."""
    return units_of(catalogue(), TARGETS[target], configs, patterns or ("*",), types)


def largest(
    units: Iterable[Unit], key: Callable[[Unit], object], size: Callable[[Unit], object]
) -> list[Unit]:
    """Keep the largest unit for each ``key``."""
    found: dict[object, Unit] = {}
    for unit in units:
        found[key(unit)] = max(found.get(key(unit), unit), unit, key=size)  # type: ignore[arg-type, type-var]
    return list(found.values())


def operation(unit: Unit) -> object:
    """The heavy operation, the type and the form of the loop, for which one tile is compiled."""
    heavy = next(pattern for pattern in HEAVIEST if fnmatchcase(unit.entry, pattern))
    return heavy, unit.kernel, unit.dtype, unit.tile.flat


def sums_of_a_thread(unit: Unit) -> tuple[float, int]:
    tile = unit.tile
    return tile.m * tile.n / tile.warps, tile.stages


def functors(unit: Unit) -> object:
    functors = [unit.variant.constant(name) for name in ("PROLOGUE", "EPILOGUE")]
    return unit.kernel, unit.dtype, *functors


def arguments(unit: Unit) -> int:
    """The number of values that are passed when the kernel is launched."""
    return sum(kind != "constexpr" for _, kind in unit.variant.types)


@pytest.fixture(scope="module")
def hopper() -> Kernels:
    """The kernels for sm_90 that the head of this file promises."""
    if EXHAUSTIVE:
        return compiled("sm_90", units("sm_90", "kernels", NARROW))
    heaviest = largest(units("sm_90", "kernels", NARROW, *HEAVIEST), operation, sums_of_a_thread)
    every = largest(units("sm_90", "default", NARROW), functors, arguments)
    return compiled("sm_90", [*every, *heaviest])


@pytest.fixture(scope="module")
def others() -> Kernels:
    """The kernels for the other targets, with their default tiles."""
    found: Kernels = []
    for target, types in OTHERS.items():
        every = units(target, "default", types)
        new = [unit for unit in every if unit.kernel in PRODUCTS or unit.dtype not in NARROW]
        one = largest(new, lambda unit: (unit.kernel, unit.dtype), arguments)
        found += compiled(target, every if EXHAUSTIVE else one)
    return found


def test_the_command_compiles_and_reports(tmp_path: Path) -> None:
    report = tmp_path / "kernels.json"
    command = [sys.executable, "-m", "benchmarks.compiled_kernels", "--kernels", "passes.join_kernel"]
    done = subprocess.run(
        [*command, "--dtype", "bfloat16", "--configs", "default", "--json", str(report)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    assert done.returncode == 0, done.stderr
    kernels = json.loads(report.read_text("utf-8"))["kernels"]
    assert {kernel["operation"] for kernel in kernels} == {"join", "join, projection"}
    assert all(kernel["registers"] > 8 for kernel in kernels)


def wrong(kernels: Kernels) -> list[str]:
    """Name the kernels with problems, for a failure that shows them."""
    return [
        f"{k['target']} {k['operation']} {k['dtype']} {k['tile']}: {k['problems']}"
        for k in kernels
        if k["problems"]
    ]


def test_every_kernel_and_tile_compiles_for_hopper(hopper: Kernels) -> None:
    assert len(hopper) > (600 if EXHAUSTIVE else 55)
    assert not wrong(hopper)


def test_next_to_nothing_spills_on_hopper(hopper: Kernels) -> None:
    assert {kernel["operation"] for kernel in hopper if kernel["spilled_bytes"] > 16} == set()
    assert max(kernel["registers"] for kernel in hopper) <= 255


def test_hopper_has_the_shared_memory(hopper: Kernels) -> None:
    assert max(kernel["shared"] for kernel in hopper) <= LIMITS["sm_90"]


def test_every_product_runs_on_hoppers_own_tensor_cores(hopper: Kernels) -> None:
    for dtype, instruction in (("bfloat16", "HGMMA"), ("int8", "IGMMA")):
        products = [
            k
            for k in hopper
            if k["dtype"] == dtype and k["kernel"].startswith(("conv.", "chain.", "stem.conv"))
        ]
        assert len(products) > 10
        assert all(instruction in kernel["tensor_core"] for kernel in products)
    wide = [
        k
        for k in hopper
        if "wgrad_kernel" in k["kernel"] and k["dtype"] == "bfloat16" and k["tile"]["m"] >= 64
    ]
    assert wide
    assert all("HGMMA" in kernel["tensor_core"] for kernel in wide)


def test_operands_are_copied_16_bytes_at_a_time(hopper: Kernels) -> None:
    products = [k for k in hopper if k["kernel"] == "conv.conv_kernel" and "stem" not in k["operation"]]
    assert all(kernel["async_copies"] > 0 for kernel in products)


def test_one_block_of_channels_does_not_make_a_tile_flat() -> None:
    """Triton has miscompiled one loop over taps and channels (``Tile.flat``), and a loop of one round is none."""
    plane, conv = Plane(8, 64, 28), Conv(3, 3, padding=1)
    x, w = activation(plane, torch.bfloat16), weight(plane, conv, torch.bfloat16)
    work = []
    for flat in (False, True):
        tile = Tile(128, 64, 64, warps=8, flat=flat)
        with choosing(lambda _, tile=tile: tile), recording() as launches:
            convolution.conv_plain(x, w, conv, None)
        work.append((variant_of(launches[0]), TARGETS["sm_90"]))
    one, other = compile_in_processes(work, 1)
    assert one.machine.async_copies > 0
    assert one.machine != other.machine


@pytest.mark.parametrize("target", OTHERS)
def test_every_kernel_compiles_for_other_gpus(target: str, others: Kernels) -> None:
    mine = [kernel for kernel in others if kernel["target"] == target]
    types = OTHERS[target]
    assert {k["kernel"] for k in mine} >= PRODUCTS
    assert len({k["dtype"] for k in mine}) >= len(types)
    assert not wrong(mine)
    assert max(kernel["shared"] for kernel in mine) <= LIMITS[target]


def test_a_tiles_need_of_shared_memory_is_never_underestimated(hopper: Kernels, others: Kernels) -> None:
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
    for kernel in [*hopper, *others]:
        dtype, tile = dtypes.get(kernel["dtype"], torch.float32), Tile.from_json(kernel["tile"])
        problem = Problem("fprop", dtype, 1, 28, 28, 256, 256, Conv(1, 1))
        if kernel["operation"].startswith("wgrad_and_dy"):
            problem = replace(problem, kind="wgrad", epilogue="dy")
        if kernel["kernel"] == "chain.chain_kernel":
            width = 128 if "128" in kernel["operation"] else 64
            following = width if "next" in kernel["operation"] else 0
            following *= 2 if "twice as wide" in kernel["operation"] else 1
            problem = replace(problem, kind="chain", c=width, following=following)
        elif kernel["kernel"] not in {"conv.conv_kernel", "wgrad.wgrad_kernel"}:
            continue
        need = needed_by(tile, problem)
        assert kernel["shared"] <= need, f"{kernel['target']} {kernel['operation']} {kernel['tile']}"
