"""Any convolution with any tile, small enough for the interpreter."""

from __future__ import annotations

import os
from dataclasses import replace

import torch
from hypothesis import assume, settings
from hypothesis import strategies as st

from fused_kernels.problem import Kind
from fused_kernels.tiles import Tile
from tests.fused_kernels.checks import Case

EXHAUSTIVE = os.environ.get("FUSED_KERNELS_EXHAUSTIVE") == "1"
FUZZ = settings(max_examples=200 if EXHAUSTIVE else 5, deadline=None)
BUDGET = 16
"""Steps of the main loop, at ten to twenty milliseconds each."""
WINDOWS = st.sampled_from([1, 1, 2, 2, 3, 3, 4, 5, 6, 7])
"""Sizes of a kernel's side; the interpreter pays for every tap."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Kernels of 1 to 7, strides of 1 to 3, planes of 1 to 9, 1 to 40 channels, 1 to 3 images, every dtype."""
    r, s = draw(WINDOWS), draw(WINDOWS)
    padding = draw(st.integers(0, max(r, s) // 2))
    case = Case(
        r,
        s,
        draw(st.integers(1, 3)),
        padding,
        n=draw(st.integers(1, 3)),
        c=draw(st.integers(1, 40)),
        k=draw(st.integers(1, 40)),
        h=draw(st.integers(max(1, r - 2 * padding), 9)),
        w=draw(st.integers(max(1, s - 2 * padding), 9)),
        dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
    )
    # a result of a few numbers may cancel to nothing, and relative errors with it
    p, q = case.conv.output_size(case.h, case.w)
    numbers = min(case.c, case.k) * case.n * p * q
    assume(numbers >= 16)
    return case if numbers >= 64 else replace(case, dtype=torch.float32)


@st.composite
def tiled_cases(draw: st.DrawFn, kind: Kind) -> tuple[Case, Tile]:
    """A case and a tile of powers of two, grown until few steps are left."""
    case = draw(cases())
    sizes = [draw(st.sampled_from([16, 32, 64])) for _ in range(3)]
    grown = 0
    while steps(kind, case, sizes) > BUDGET and grown < 9:
        sizes[grown % 3] *= 2
        grown += 1
    m, n, k = sizes
    flat, group, splits = draw(st.booleans()), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    return case, Tile(m, n, k, flat=flat, group=group, splits=splits)


def steps(kind: Kind, case: Case, sizes: list[int]) -> int:
    """Steps of the main loop over all programs; a little more for the parities of dgrad."""
    p, q = case.conv.output_size(case.h, case.w)
    pixels, taps = case.n * p * q, case.r * case.s
    rows, cols, depth = {
        "fprop": (pixels, case.k, case.c),
        "dgrad": (case.n * case.h * case.w, case.c, case.k),
        "wgrad": (case.c, case.k, pixels),
    }[kind]
    blocks = [-(-length // size) for length, size in zip((rows, cols, depth), sizes, strict=True)]
    return taps * blocks[0] * blocks[1] * blocks[2]
