"""Tests of the checks: each classic mistake, put into the source, must fail the check that looks for it.

A mutation is a change of text. If its text is not found exactly once, it fails loudly, so that it follows the source.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

import fused_kernels
from fused_kernels import kernels as kernel_package
from fused_kernels.launch import kernel_function
from fused_kernels.ops.statistics import MOST_TILES
from fused_kernels.tiles import Tile
from tests.fused_kernels import checks
from tests.fused_kernels.checks import Case, partials_of
from tests.fused_kernels.conftest import SMALL, activation, reseed, tiles

ROOT = Path(fused_kernels.__file__).parent
POINT = Case(1, 1, padding=0, h=4, w=4)
"""32 rows: one tile, and no taps that meet padding."""
WINDOW = Case(2, 2)
HALVED = Case(2, 2, stride=2, h=4, w=4)
"""Every parity of dgrad meets one tap."""
WIDE = Case(1, 1, padding=0, n=3, c=40, k=40, h=4, w=4)
"""48 rows and 40 channels: no size is a multiple of a tile."""
LINE = Case(1, 1, padding=0, n=1, h=1, w=81)
"""Three row tiles, the last of 17 rows."""


def finalized(count: int = 81, per_tile: int = 32) -> None:
    y = activation(1, 5, 1, count, mean=1.0)
    checks.check_finalize(y, partials_of(y, per_tile))


@dataclass(frozen=True)
class Mutation:
    """``old`` becomes ``new`` in ``file``, and ``check`` must then find ``wrong`` to be wrong."""

    mistake: str
    file: str
    old: str
    new: str
    check: Callable[[], None]
    wrong: str
    tile: Tile = SMALL


MUTATIONS = [
    Mutation(
        "padding is not zeroed after the prologue",
        "kernels/prologues.py",
        "tl.where(ok, v, 0.0)",
        "v",
        partial(checks.check_conv_moments, WINDOW),
        "y is off",
    ),
    Mutation(
        "the shift is read from the row of the scales",
        "kernels/numerics.py",
        "vectors_ptr + 3 * C + channels",
        "vectors_ptr + 2 * C + channels",
        partial(checks.check_conv_moments, POINT),
        "y is off",
    ),
    Mutation(
        "the scale is dropped",
        "kernels/numerics.py",
        " * scale[None, :]",
        "",
        partial(checks.check_join, POINT),
        "z is off",
    ),
    Mutation(
        "every channel takes the first one's mean",
        "kernels/numerics.py",
        "mean = tl.load(vectors_ptr + channels, mask=channel_ok, other=0.0)\n    return",
        "mean = tl.load(vectors_ptr + channels * 0, mask=channel_ok, other=0.0)\n    return",
        partial(checks.check_entry, POINT),
        "sum 1 is off",
    ),
    Mutation(
        "a row of pixels runs on into the next one",
        "kernels/gemm.py",
        " & (col < W)",
        "",
        partial(checks.check_conv_plain, WINDOW),
        "reads .* outside|y is off",
    ),
    Mutation(
        "rows that do not exist are stored",
        "kernels/epilogues.py",
        "tl.store(out_ptr + at, v.to(out_ptr.dtype.element_ty), mask=ok_m[:, None] & ok_n[None, :])",
        "tl.store(out_ptr + at, v.to(out_ptr.dtype.element_ty), mask=ok_n[None, :])",
        partial(checks.check_conv_plain, LINE),
        "writes .* outside",
    ),
    Mutation(
        "columns that do not exist are stored",
        "kernels/epilogues.py",
        "tl.store(out_ptr + at, v.to(out_ptr.dtype.element_ty), mask=ok_m[:, None] & ok_n[None, :])",
        "tl.store(out_ptr + at, v.to(out_ptr.dtype.element_ty), mask=ok_m[:, None])",
        partial(checks.check_conv_plain, WIDE),
        "writes .* (outside|twice)",
    ),
    Mutation(
        "an output is not marked as written",
        "ops/passes.py",
        "shortcut_vectors_ptr=shortcut_vectors, z_ptr=Out(z)",
        "shortcut_vectors_ptr=shortcut_vectors, z_ptr=z",
        partial(checks.check_join, POINT),
        "writes .* outside",
    ),
    Mutation(
        "// for cdiv in the blocks of depth",
        "kernels/gemm.py",
        "range(0, DEPTH, BLOCK_K)",
        "range(0, DEPTH // BLOCK_K * BLOCK_K, BLOCK_K)",
        partial(checks.check_conv_moments, WIDE),
        "y is off",
    ),
    Mutation(
        "// for cdiv in the blocks of the flat loop",
        "kernels/gemm.py",
        "(DEPTH + BLOCK_K - 1) // BLOCK_K",
        "DEPTH // BLOCK_K",
        partial(checks.check_conv_moments, WIDE),
        "y is off",
        Tile(32, 32, 32, flat=True),
    ),
    Mutation(
        "taps of a parity are taken for neighbours",
        "kernels/gemm.py",
        "(FIRST_H + i * EVERY) * WINDOW",
        "(FIRST_H + i) * WINDOW",
        partial(checks.check_dgrad_shortcut, Case(3, 1, stride=2, h=5, w=2)),
        "dx is off",
    ),
    Mutation(
        "the last group of row tiles is taken for a whole one",
        "kernels/gemm.py",
        "tl.minimum(rows - first, GROUP)",
        "GROUP",
        partial(checks.check_conv_plain, Case(1, 1, padding=0, n=1, k=40, h=1, w=81)),
        "y is off",
        Tile(32, 32, 32, group=2),
    ),
    Mutation(
        "// for cdiv in the grid's rows",
        "ops/products.py",
        "gather.parities * ceil_div(pixels.m, tile.m) *",
        "gather.parities * (pixels.m // tile.m) *",
        partial(checks.check_conv_moments, LINE),
        "y is off by inf",
    ),
    Mutation(
        "// for cdiv in the grid's columns",
        "ops/products.py",
        "* ceil_div(walk.cols, tile.n)",
        "* (walk.cols // tile.n)",
        partial(checks.check_conv_moments, WIDE),
        "y is off by inf",
    ),
    Mutation(
        "a tile counts rows that do not exist",
        "kernels/epilogues.py",
        "count = tl.sum(ok_m.to(tl.float32), axis=0)",
        "count = tl.sum(tl.where(ok_m, 1.0, 1.0), axis=0)",
        partial(checks.check_conv_moments, LINE),
        "tile means is off",
    ),
    Mutation(
        "statistics are not those of the stored values",
        "kernels/epilogues.py",
        "return get(out_ptr, pixels, ok_m, cols, ok_n, COLS).to(tl.float32)",
        "return v",
        partial(checks.check_conv_moments, Case(1, 1, padding=0, dtype=torch.float16)),
        "tile means is off",
    ),
    Mutation(
        ">= for > in the mask of an inner ReLU",
        "kernels/epilogues.py",
        "batch_norm(y, vectors_ptr, some, ok, COLS) > 0",
        "batch_norm(y, vectors_ptr, some, ok, COLS) >= 0",
        partial(checks.check_closed_relu, POINT),
        "passes a closed ReLU",
    ),
    Mutation(
        ">= for > in the mask of a block's ReLU",
        "kernels/epilogues.py",
        "tl.where(z > 0, v, 0.0)",
        "tl.where(z >= 0, v, 0.0)",
        partial(checks.check_dgrad_block, POINT),
        "g is off",
    ),
    Mutation(
        "a parity's sums overwrite those of another",
        "kernels/conv.py",
        "row_tile * PARITIES + parity,",
        "row_tile * PARITIES,",
        partial(checks.check_dgrad_drelu, HALVED),
        "writes .* twice",
    ),
    Mutation(
        "a strided shortcut reaches every column",
        "kernels/epilogues.py",
        "ok_m & (h % stride == 0) & (w % stride == 0)",
        "ok_m & (h % stride == 0)",
        partial(checks.check_dgrad_shortcut, POINT, stride=2),
        "dx is off",
    ),
    Mutation(
        "a gradient of a stride is taken for one row of pixels",
        "operands/geometry.py",
        "self.in_stride == self.out_stride == 1",
        "self.in_stride == 1",
        partial(checks.check_dgrad_shortcut, Case(1, 1, stride=2, padding=0, h=6, w=6)),
        "dx is off|reads .* outside|writes .* twice",
    ),
    Mutation(
        "parities are swapped",
        "kernels/conv.py",
        "out_h = p * OUT_STRIDE + parity // OUT_STRIDE",
        "out_h = p * OUT_STRIDE + OUT_STRIDE - 1 - parity // OUT_STRIDE",
        partial(checks.check_dgrad_shortcut, HALVED),
        "dx is off",
    ),
    Mutation(
        "pixels of a parity that do not exist are stored",
        "kernels/conv.py",
        "ok_m &= (out_h < OUT_H) & (out_w < OUT_W)",
        "ok_m &= out_h < OUT_H",
        partial(checks.check_dgrad_shortcut, Case(2, 2, stride=2, h=5, w=5)),
        "(reads|writes) .* (outside|twice)",
    ),
    Mutation(
        "the base of a parity ignores padding",
        "kernels/conv.py",
        "h + (PARITY_H + BASE_H - FIRST_H) // STRIDE",
        "h",
        partial(checks.check_dgrad_drelu, Case(3, 1, stride=2, h=5, w=2)),
        "g is off",
    ),
    Mutation(
        "a tap's own row is forgotten",
        "kernels/wgrad.py",
        "top = tap // S - PADDING_H",
        "top = 0 - PADDING_H",
        partial(checks.check_wgrad, WINDOW),
        "dw is off",
    ),
    Mutation(
        "a block that ends with a row of pixels stays in it",
        "kernels/wgrad.py",
        "next_row = w >= end_w",
        "next_row = w > end_w",
        partial(checks.check_wgrad, WINDOW),
        "dw is off",
        Tile(32, 32, 16),
    ),
    Mutation(
        "a block that ends with an image stays in it",
        "kernels/wgrad.py",
        "next_image = h >= end_h",
        "next_image = h > end_h",
        partial(checks.check_wgrad, WINDOW),
        "dw is off",
        Tile(32, 32, 16),
    ),
    Mutation(
        "the gradient counts where the window reads padding",
        "kernels/wgrad.py",
        "ok_dy = ok_x[:, None] & ok_k",
        "ok_dy = (row < left)[:, None] & ok_k",
        partial(checks.check_wgrad, WINDOW),
        "dw is off",
        Tile(32, 32, 16),
    ),
    Mutation(
        "dy beyond the last pixel is not zero",
        "kernels/wgrad.py",
        "tl.where(ok, batch_norm_gradient(g, y, vectors), 0.0)",
        "batch_norm_gradient(g, y, vectors)",
        partial(checks.check_wgrad_and_dy, Case(1, 1, padding=0, n=1, h=5, w=7)),
        "dw is off",
        Tile(32, 32, 32),
    ),
    Mutation(
        "only the first columns of dy are written",
        "kernels/wgrad.py",
        "tl.program_id(0) < k_tiles\n",
        "tl.program_id(0) < 1\n",
        partial(checks.check_wgrad_and_dy, Case(1, 1, padding=0, k=40)),
        "dy is off",
        Tile(32, 32, 32),
    ),
    Mutation(
        "a last part of whole blocks is as long as the others",
        "kernels/wgrad.py",
        "rounds(left // BLOCK_P, STEPS)",
        "STEPS",
        partial(checks.check_wgrad_and_dy, Case(1, 1, padding=0, n=1, c=32, k=32, h=1, w=80)),
        "reads .* outside",
        Tile(32, 32, 16, splits=2),
    ),
    Mutation(
        "blocks that reach beyond the last channel are taken for whole ones",
        "kernels/wgrad.py",
        "return tl.full((SIZE,), True, tl.int1) if WHOLE else index < size",
        "return tl.full((SIZE,), True, tl.int1)",
        partial(checks.check_wgrad, WIDE),
        "(reads|writes) .* (outside|twice)",
    ),
    Mutation(
        "the second half of the columns is not read back",
        "kernels/epilogues.py",
        "return first + part * size",
        "return first",
        partial(checks.check_dgrad_drelu, Case(1, 1, padding=0, n=1, c=130, h=3, w=3)),
        "writes .* twice",
        Tile(16, 128, 16),
    ),
    Mutation(
        "parts of the pixels overlap",
        "kernels/wgrad.py",
        "first = split * STEPS * BLOCK_P",
        "first = split * BLOCK_P",
        partial(checks.check_wgrad, Case(1, 1, padding=0, n=1, h=1, w=100)),
        "dw is off",
        Tile(32, 32, 16, splits=3),
    ),
    Mutation(
        "the first part is left out of the sum",
        "kernels/wgrad.py",
        "range(0, SPLITS, ROWS)",
        "range(1, SPLITS, ROWS)",
        partial(checks.check_wgrad, LINE),
        "dw is off",
    ),
    Mutation(
        "// for cdiv in the blocks of pixels",
        "ops/convolution.py",
        "parts_of(ceil_div(pixels.m, tile.k), tile.splits)",
        "parts_of(pixels.m // tile.k, tile.splits)",
        partial(checks.check_wgrad, WIDE),
        "dw is off",
        Tile(64, 64, 32),
    ),
    Mutation(
        "the last tile is merged as a whole one",
        "kernels/statistics.py",
        "tl.minimum(count - t * rows, rows)",
        "tl.minimum(count, rows + t * 0)",
        finalized,
        "invstd.2 is off",
    ),
    Mutation(
        "every group merges the first group's tiles",
        "kernels/statistics.py",
        "first = group * STEPS * BLOCK",
        "first = group * 0",
        partial(finalized, MOST_TILES + 200, 1),
        "invstd.2 is off",
    ),
    Mutation(
        "the tracked variance is the biased one",
        "kernels/statistics.py",
        "m2 / tl.maximum(n - 1.0, 1.0)",
        "m2 / n",
        finalized,
        "running variance is off",
    ),
    Mutation(
        "momentum weighs the old value",
        "kernels/statistics.py",
        "momentum * (mean - old_mean)",
        "(1 - momentum) * (mean - old_mean)",
        finalized,
        "running mean is off",
    ),
    Mutation(
        "a factor of 1 / std is dropped",
        "kernels/statistics.py",
        "-scale * invstd.to(tl.float64) * invstd.to(tl.float64) *",
        "-scale * invstd.to(tl.float64) *",
        partial(checks.check_batch_norm_backward, POINT),
        "dy is off",
    ),
    Mutation(
        "frozen statistics are differentiated",
        "kernels/statistics.py",
        "if not FROZEN:",
        "if True:",
        partial(checks.check_batch_norm_backward, POINT, frozen=True),
        "dy is off",
    ),
    Mutation(
        "y is not centred",
        "kernels/numerics.py",
        "(y.to(tl.float32) - mean[None, :])",
        "y.to(tl.float32)",
        partial(checks.check_batch_norm_backward, POINT),
        "dy is off",
    ),
    Mutation(
        "the projection's sums go where the main path's are",
        "kernels/passes.py",
        "ok_m, partials_ptr, 2, tiles",
        "ok_m, partials_ptr, 1, tiles",
        partial(checks.check_entry, POINT, projection=True),
        "writes 20 elements twice",
    ),
    Mutation(
        "// for cdiv in the grid of a pass",
        "ops/passes.py",
        "grid = (ceil_div(rows, tile.m),",
        "grid = (rows // tile.m,",
        partial(checks.check_join, Case(n=1, c=5, h=1, w=513)),
        "z is off by inf",
    ),
]

FAILURES = (AssertionError, pytest.importorskip("triton.runtime.errors").InterpreterError)
"""Errors of a check, and of the sanitizer inside of a kernel."""


@contextmanager
def mutated(mutation: Mutation, folder: Path) -> Iterator[None]:
    """Run with the mutation in place of the source, then with the source again."""
    text = (ROOT / mutation.file).read_text("utf-8")
    found = text.count(mutation.old)
    if found != 1:
        pytest.fail(
            f"{mutation.file} has {mutation.old!r} {found} times: give the mutation the text that it has now"
        )
    changed = text.replace(mutation.old, mutation.new)
    replace = with_kernels if mutation.file.startswith("kernels/") else with_module
    with replace(mutation.file, changed, folder):
        yield


@contextmanager
def with_kernels(file: str, text: str, folder: Path) -> Iterator[None]:
    """Import the kernels from a copy of their folder; Triton reads a kernel's source from its file."""
    for path in (ROOT / "kernels").glob("*.py"):
        (folder / path.name).write_text(text if path.name == Path(file).name else path.read_text("utf-8"))
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("fused_kernels.kernels.")]:
            patch.delitem(sys.modules, name)
        patch.setattr(kernel_package, "__path__", [str(folder)])
        importlib.invalidate_caches()
        kernel_function.cache_clear()
        try:
            yield
        finally:
            kernel_function.cache_clear()
            for name in [name for name in sys.modules if name.startswith("fused_kernels.kernels.")]:
                del sys.modules[name]


@contextmanager
def with_module(file: str, text: str, folder: Path) -> Iterator[None]:
    """Run the changed source in the module that others have imported already."""
    module = importlib.import_module("fused_kernels." + file.removesuffix(".py").replace("/", "."))
    before = dict(vars(module))
    exec(compile(text, str(ROOT / file), "exec"), vars(module))
    try:
        yield
    finally:
        vars(module).clear()
        vars(module).update(before)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, for what a mutation computes
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.mistake)
def test_a_check_finds(mutation: Mutation, tmp_path: Path) -> None:
    with tiles(mutation.tile):
        mutation.check()
        reseed(0)
        with mutated(mutation, tmp_path), pytest.raises(FAILURES, match=mutation.wrong):
            mutation.check()


def test_the_source_is_whole_again(tmp_path: Path) -> None:
    for mutation in (MUTATIONS[0], MUTATIONS[8]):
        with mutated(mutation, tmp_path):
            pass
    with tiles(Tile(32, 32, 32)):
        checks.check_conv_moments(WINDOW)
        checks.check_conv_moments(LINE)


def test_a_mutation_of_text_that_is_gone_fails_loudly(tmp_path: Path) -> None:
    gone = Mutation("none", "operands/geometry.py", "no such text", "", finalized, "")
    with (
        pytest.raises(pytest.fail.Exception, match=r"operands/geometry.py has 'no such text' 0 times"),
        mutated(gone, tmp_path),
    ):
        pass
