"""Code that is compiled ahead of time has the name in Triton's cache under which a launch looks for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from fused_kernels.compiling.variant import Variant, aligned, variant_of
from fused_kernels.launch import Functor, recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import convolution
from fused_kernels.tiles import Tile
from tests.fused_kernels.conftest import tiles

# Runs where the interpreter is off, on a driver of a GPU that is not there: every launch of the catalogue goes all the
# way to Triton's own launcher, which then says what it would compile: the two hashes that name it in Triton's cache.
AGAINST_TRITON = """
import json
from functools import partial
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime import driver
from triton.runtime.jit import JITFunction, KernelInterface
from benchmarks.compiled_kernels.catalogue import catalogue
from fused_kernels import launch
from fused_kernels.compiling.compiler import options_of, source_of
from fused_kernels.compiling.variant import variant_of

TARGET = GPUTarget("cuda", 90, 32)
BACKEND = make_backend(TARGET)

class Driver:
    get_current_target = lambda self: TARGET
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

asked = []
def instead_of_compiling(function, key, signature, device, constants, options, attributes, warmup):
    asked.append((ASTSource(function, signature, constants, attributes).hash(), options.hash()))

def ours(described):
    variant = variant_of(described)
    return source_of(variant).hash(), BACKEND.parse_options(options_of(variant)).hash()

driver.set_active(Driver())
JITFunction._do_compile = instead_of_compiling
KernelInterface.__getitem__ = lambda kernel, grid: partial(kernel.run, grid=grid, warmup=True)
launch.is_abstract = lambda tensor: False
count, different = 0, []
for entry in catalogue():
    asked.clear()
    with launch.recording() as launches:
        entry.run()
    assert len(launches) == len(asked)
    count += len(launches)
    different += [f"{entry.name}: {a.kernel}" for a, theirs in zip(launches, asked) if ours(a) != theirs]
print(json.dumps([count, different]))
"""


def conv_variant(c: int = 16, k: int = 32, side: int = 8, tile: Tile | None = None) -> Variant:
    """The variant of a 3x3 convolution with moments, in bf16."""
    x = torch.empty((2, c, side, side), dtype=torch.bfloat16, device="meta")
    w = torch.empty((k, c, 3, 3), dtype=torch.bfloat16, device="meta")
    with tiles(tile or Tile(64, 32, 16)), recording() as launches:
        convolution.conv_moments(x, w, Conv(3, 3, padding=1))
    return variant_of(launches[0])


@pytest.mark.slow
def test_it_is_what_triton_itself_would_compile() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run(
        [sys.executable, "-c", AGAINST_TRITON], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    count, different = json.loads(done.stdout)
    assert not different
    assert count > 500


def test_types_constants_and_alignment_of_one_launch() -> None:
    variant = conv_variant()
    types = dict(variant.types)
    assert types["x_ptr"] == "*bf16"
    assert types["epilogue_args"] == ("*fp32", "i32")
    assert types["DEPTH_STRIDE"] == "constexpr"  # it is 1
    assert variant.constant("EPILOGUE") == Functor("epilogues.moments")
    assert variant.constant("BLOCK_M") == 64
    assert variant.constant("M") is None
    names = list(types)
    assert (names.index("M"),) in variant.divisible  # 128
    assert (names.index("H"),) not in variant.divisible  # 8
    assert (names.index("epilogue_args"), 0) in variant.divisible
    assert dict(variant.options) == {"num_warps": 4, "num_stages": 3}


def test_sizes_that_triton_does_not_look_at_share_a_compilation() -> None:
    assert conv_variant(side=8) == conv_variant(side=12)
    assert conv_variant(side=8) != conv_variant(side=9)  # 162 rows are no multiple of 16
    assert conv_variant() != conv_variant(tile=Tile(64, 32, 16, warps=8))
    assert conv_variant() != conv_variant(tile=Tile(64, 32, 16, registers=128))
    assert conv_variant() != conv_variant(k=40)


def test_a_view_may_be_unaligned() -> None:
    whole = torch.empty(64, dtype=torch.bfloat16, device="meta")
    assert aligned(whole)
    assert not aligned(whole[1:])
    assert aligned(whole[8:])
