"""The catalogue covers the kernels, and the units cover the catalogue with every tile."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fused_kernels
from benchmarks.compiled_kernels.catalogue import catalogue
from benchmarks.compiled_kernels.units import Unit, units_of
from fused_kernels.gpus import TARGETS
from fused_kernels.launch import Functor

KERNELS = Path(fused_kernels.__file__).parent / "kernels"
HOPPER, AMPERE = TARGETS["sm_90"], TARGETS["sm_86"]


def functions() -> dict[str, list[str]]:
    """Every function in ``kernels`` as ``module.function``, with its parameters' names."""
    return {
        f"{path.stem}.{node.name}": [argument.arg for argument in node.args.args]
        for path in KERNELS.glob("*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }


def kernels(module: str = "") -> set[str]:
    """Kernels that are launched."""
    return {name for name in functions() if name.startswith(module) and name.endswith("_kernel")}


def functors() -> set[str]:
    """Functors that are passed to a kernel."""
    return {
        name
        for name, parameters in functions().items()
        if name.split(".")[0] in {"epilogues", "prologues"} and "args" in parameters
    }


@pytest.fixture(scope="module")
def units() -> list[Unit]:
    """The compilations for Hopper by default."""
    return units_of(catalogue(), HOPPER, "kernels")


def test_every_kernel_is_compiled(units: list[Unit]) -> None:
    assert {unit.kernel for unit in units} == kernels()


def test_every_epilogue_and_prologue_is_compiled(units: list[Unit]) -> None:
    used = {value.name for unit in units for _, value in unit.variant.constants if isinstance(value, Functor)}
    assert {name for name in used if not name.startswith("numerics.")} == functors()


def test_every_dtype_is_compiled(units: list[Unit]) -> None:
    assert {unit.dtype for unit in units} == {"bfloat16", "float16", "float32", "tf32", "int8"}
    # fp16 compiles to bf16's code, but for an image that is normalized in it, and for a tile of chains that bf16 spills
    own = {"image.take_kernel", "chain.chain_kernel"}
    assert {unit.kernel for unit in units if unit.dtype == "float16"} == own
    assert "float16" in {unit.dtype for unit in units_of(catalogue(), HOPPER, "all", ["conv_moments 3x3"])}


def test_a_compilation_is_listed_once(units: list[Unit]) -> None:
    assert len({unit.variant for unit in units}) == len(units)


def test_defaults_are_among_the_candidates_and_these_among_all() -> None:
    entries = [entry for entry in catalogue() if entry.name == "dgrad_drelu 3x3/2"]
    default, kernels, everything = (
        {unit.variant for unit in units_of(entries, HOPPER, configs)}
        for configs in ("default", "kernels", "all")
    )
    assert default < kernels < everything


def test_a_small_gpu_gets_tiles_that_fit_it() -> None:
    entries = [entry for entry in catalogue() if entry.name == "conv_moments 3x3"]
    stages = {
        unit.tile.stages for unit in units_of(entries, AMPERE, "all") if unit.tile.m == unit.tile.n == 128
    }
    assert stages == {3}
    hopper = {
        unit.tile.stages for unit in units_of(entries, HOPPER, "all") if unit.tile.m == unit.tile.n == 128
    }
    assert hopper == {3, 4}


def test_a_pattern_selects_kernels_or_operations() -> None:
    assert {unit.kernel for unit in units_of(catalogue(), HOPPER, "default", ["stem.*"])} == kernels("stem.")
    assert {unit.entry for unit in units_of(catalogue(), HOPPER, "default", ["join*"])} >= {
        "join",
        "join, projection",
    }
    both = units_of(catalogue(), HOPPER, "default", ["stem.*", "join*"])
    assert {unit.kernel for unit in both} == kernels("stem.") | {"passes.join_kernel"}
    assert units_of(catalogue(), HOPPER, "default", ["nothing"]) == []


def test_a_sample_has_every_default_and_the_heaviest_calls_with_every_candidate() -> None:
    entries = [entry for entry in catalogue() if entry.name.startswith("dgrad_block 1x1")]
    few, default, sample, kernels = (
        units_of(entries, HOPPER, configs) for configs in ("few", "default", "sample", "kernels")
    )
    assert {unit.dtype for unit in few} == {"bfloat16", "float32", "tf32"}
    assert {unit.entry for unit in few} == {"dgrad_block 1x1 + shortcut/2, projection"}
    chosen = {(unit.entry, unit.tile) for unit in kernels if unit.entry == few[0].entry}
    chosen = {(entry, tile) for entry, tile in chosen if tile.k >= 64}  # of bf16
    assert len(chosen) > 5
    assert chosen <= {(unit.entry, unit.tile) for unit in sample}
    assert {unit.variant for unit in default} <= {unit.variant for unit in sample}
    assert len(sample) < len(kernels)
