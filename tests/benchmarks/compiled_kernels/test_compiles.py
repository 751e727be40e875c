"""Every kernel compiles, for every GPU, as well as it must: on sm_90 with every tile that the tuner may choose.

To stay within minutes, on sm_90 every functor in bf16 and int8 with its default tile, and every tile with the functors
that need the most registers; on the other targets the default tiles alone, in one or two types, so that each type is
compiled for one target and each kind of tensor core in one type. With FUSED_KERNELS_EXHAUSTIVE=1 every tile of every
functor on sm_90, and all targets, in every type. All of it, and on the newest Triton too, is what
scripts/compile-with-newest-triton.sh compiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fused_kernels.operands.geometry import Conv
from fused_kernels.problem import Problem
from fused_kernels.shared_memory import needed_by
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
    "dgrad_block * + shortcut/2*projection",
    "conv_int8 * + residual + ReLU",
    "conv_bias 3x3 + ReLU",  # no second tensor and no sums: tiles that are too large for all others
    "conv_int8 3x3 + ReLU",
    "conv_int8 1x1 + ReLU",
    "chain 128 + next 1x1*",
    "wgrad * of relu(bn(x))*",
    "stem_conv_moments*",
    "stem_inference*",
)
"""Operations whose kernels are compiled with every candidate tile."""
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


def compiled(folder: Path, *options: str) -> Kernels:
    """What the command reports; a process of its own, for this one interprets the kernels."""
    report = folder / "kernels.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compiled_kernels", "--json", str(report), *options],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )
    assert report.exists(), done.stderr
    body = json.loads(report.read_text("utf-8"))
    assert done.returncode == (0 if body["passed"] else 1)
    return list(body["kernels"])


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Every kernel for sm_90, with the tiles that the head of this file promises."""
    folder, target = tmp_path_factory.mktemp("hopper"), ("--target", "sm_90", *of_types(NARROW))
    if EXHAUSTIVE:
        return compiled(folder, *target, "--configs", "kernels")
    heaviest = [option for pattern in HEAVIEST for option in ("--kernels", pattern)]
    every_tile = compiled(folder, *target, "--configs", "kernels", *heaviest)
    return every_tile + compiled(folder, *target, "--configs", "default")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Every kernel with its default tile for the other targets."""
    folder = tmp_path_factory.mktemp("others")
    return [
        kernel
        for target, types in OTHERS.items()
        for kernel in compiled(folder, "--target", target, "--configs", "default", *of_types(types))
    ]


def of_types(names: tuple[str, ...]) -> list[str]:
    """Options that choose these types; all types where there is no name."""
    return [option for name in names for option in ("--dtype", name)]


def wrong(kernels: Kernels) -> list[str]:
    """Those with problems, for a failure that names them."""
    return [
        f"{k['target']} {k['operation']} {k['dtype']} {k['tile']}: {k['problems']}"
        for k in kernels
        if k["problems"]
    ]


def test_every_kernel_and_tile_compiles_for_hopper(hopper: Kernels) -> None:
    assert len(hopper) > (600 if EXHAUSTIVE else 150)
    assert not wrong(hopper)


def test_nothing_spills_on_hopper(hopper: Kernels) -> None:
    assert {kernel["operation"] for kernel in hopper if kernel["spills"]} == set()
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
        assert len(products) > 40
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


@pytest.mark.parametrize("target", OTHERS)
def test_every_kernel_compiles_for_other_gpus(target: str, others: Kernels) -> None:
    mine = [kernel for kernel in others if kernel["target"] == target]
    assert len(mine) > 30
    assert not wrong(mine)
    assert max(kernel["shared"] for kernel in mine) <= LIMITS[target]


def test_a_tiles_need_of_shared_memory_is_never_underestimated(hopper: Kernels, others: Kernels) -> None:
    dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
    for kernel in [*hopper, *others]:
        dtype, tile = dtypes.get(kernel["dtype"], torch.float32), Tile.from_json(kernel["tile"])
        problem = Problem("fprop", dtype, 1, 28, 28, 256, 256, Conv(1, 1))
        if kernel["kernel"] == "chain.chain_kernel":
            width = 128 if "128" in kernel["operation"] else 64
            following = width if "next" in kernel["operation"] else 0
            problem = replace(problem, kind="chain", c=width, following=following)
        elif kernel["kernel"] not in {"conv.conv_kernel", "wgrad.wgrad_kernel"}:
            continue
        need = needed_by(tile, problem)
        assert kernel["shared"] <= need, f"{kernel['target']} {kernel['operation']} {kernel['tile']}"
