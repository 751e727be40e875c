"""Convolutions with their neighbours fused in, against float64 autograd; wgrad has a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fused_kernels.candidates import candidates
from fused_kernels.choice import REFERENCE, choosing
from fused_kernels.errors import ShapeError, Unsupported
from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.partials import Partials
from fused_kernels.ops import convolution, statistics
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile
from tests.fused_kernels import checks, ground_truth
from tests.fused_kernels.checks import Case
from tests.fused_kernels.conftest import (
    activation,
    batch_norm_vectors,
    kernels,
    reference,
    reseed,
    tiles,
    weight,
)
from tests.fused_kernels.strategies import FUZZ, tiled_cases
from tests.fused_kernels.tolerances import assert_variance

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
seeds = st.integers(0, 2**16)
shortcut_strides = st.integers(1, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prologue", [False, True])
def test_conv_with_moments(dtype: torch.dtype, prologue: bool, small_tiles: Tile) -> None:
    checks.check_conv_moments(Case(dtype=dtype), prologue=prologue)


@pytest.mark.parametrize("prologue", [False, True])
def test_conv_without_moments(prologue: bool, small_tiles: Tile) -> None:
    checks.check_conv_plain(Case(stride=2), prologue=prologue)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_dgrad_through_relu(dtype: torch.dtype, stride: int, small_tiles: Tile) -> None:
    checks.check_dgrad_drelu(Case(dtype=dtype, stride=stride))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("stride", "projection"), [(1, False), (2, True)])
def test_dgrad_into_the_block_before(
    dtype: torch.dtype, stride: int, projection: bool, small_tiles: Tile
) -> None:
    case = Case(1, 1, padding=0, h=5, w=6, dtype=dtype)
    checks.check_dgrad_block(case, stride=stride, projection=projection)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stride", [None, 1, 2])
def test_dgrad_plus_shortcut(dtype: torch.dtype, stride: int | None, small_tiles: Tile) -> None:
    checks.check_dgrad_shortcut(Case(1, 1, padding=0, h=5, w=6, dtype=dtype), stride=stride)


@FUZZ
@given(tiled_cases("fprop"), st.booleans(), seeds)
def test_conv_of_any_geometry(made: tuple[Case, Tile], prologue: bool, seed: int) -> None:
    reseed(seed)
    with tiles(made[1]):
        checks.check_conv_moments(made[0], prologue=prologue)


@FUZZ
@given(tiled_cases("dgrad"), seeds)
def test_dgrad_through_relu_of_any_geometry(made: tuple[Case, Tile], seed: int) -> None:
    reseed(seed)
    with tiles(made[1]):
        checks.check_dgrad_drelu(made[0])


@FUZZ
@given(tiled_cases("dgrad"), shortcut_strides, st.booleans(), seeds)
def test_dgrad_into_the_block_before_of_any_geometry(
    made: tuple[Case, Tile], stride: int, projection: bool, seed: int
) -> None:
    reseed(seed)
    with tiles(made[1]):
        checks.check_dgrad_block(made[0], stride=stride, projection=projection)


@FUZZ
@given(tiled_cases("dgrad"), shortcut_strides | st.none(), seeds)
def test_dgrad_plus_shortcut_of_any_geometry(made: tuple[Case, Tile], stride: int | None, seed: int) -> None:
    reseed(seed)
    with tiles(made[1]):
        checks.check_dgrad_shortcut(made[0], stride=stride)


@pytest.mark.parametrize("rows", [31, 32, 33, 64, 65])
def test_rows_around_the_end_of_a_tile(rows: int) -> None:
    case = Case(1, 1, padding=0, n=1, h=1, w=rows)
    with tiles(Tile(32, 32, 32)):
        checks.check_conv_moments(case)
        checks.check_dgrad_drelu(case)


@pytest.mark.parametrize("channels", [64, 65, 128, 130])
def test_many_columns_are_read_back_in_halves(channels: int) -> None:
    case = Case(1, 1, padding=0, n=1, c=channels, k=3, h=3, w=6)
    with tiles(Tile(16, 128, 16)):
        checks.check_dgrad_drelu(case)
        checks.check_dgrad_block(case, projection=True)


@pytest.mark.parametrize("channels", [15, 16, 17, 33])
def test_channels_around_the_end_of_a_tile(channels: int) -> None:
    with tiles(Tile(64, 16, 16)):
        checks.check_conv_moments(Case(1, 1, padding=0, c=channels, k=channels))
        checks.check_dgrad_drelu(Case(1, 1, padding=0, c=channels, k=channels))


@pytest.mark.parametrize(("group", "flat"), [(1, True), (2, False), (3, True), (8, False)])
def test_the_order_of_tiles_and_the_limit_of_registers_change_no_bit(group: int, flat: bool) -> None:
    case = Case(1, 1, padding=0, n=1, h=8, w=9, c=33, k=20)
    x, w, vectors = case.x(), case.weight(), case.vectors()
    with tiles(Tile(16, 16, 64, group=1)):
        y, partials = convolution.conv_moments(x, w, case.conv, vectors)
    with tiles(Tile(16, 16, 64, group=group, flat=flat, registers=128)):
        again, partials_again = convolution.conv_moments(x, w, case.conv, vectors)
    assert torch.equal(y, again)
    assert torch.equal(partials.rows, partials_again.rows)


def test_nothing_passes_a_closed_relu_also_exactly_at_zero(small_tiles: Tile) -> None:
    checks.check_closed_relu(Case(1, 1, padding=0))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of inf - inf in the interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_spreads_as_in_torch(value: float, small_tiles: Tile) -> None:
    case = Case(h=7, w=6)
    x, w, vectors = case.x(), case.weight(), case.vectors()
    vectors[2:] = vectors[2:].abs()
    x[1, 3, 4, 0] = value
    y, _ = convolution.conv_moments(x, w, case.conv, vectors)
    truth = ground_truth.conv(x, w, case.window, vectors, torch.float32)
    assert torch.equal(y.isnan(), truth.isnan())
    assert torch.equal(y.isfinite(), truth.isfinite())
    assert 0 < y.isfinite().sum() < y.numel()


def row_tiles(dtype: torch.dtype) -> list[int]:
    """Rows of every tile that convolves with moments: candidates, the default among them."""
    points = [Problem("fprop", dtype, 1, 1, rows, 64, 64, Conv(1, 1)) for rows in (1, 20, 40, 1000, 10**6)]
    posed = [
        replace(point, prologue=prologue, epilogue=epilogue)
        for point in points
        for prologue, epilogue in (
            ("identity", "moments"),
            ("bn_relu", "moments"),
            ("identity", "stem_moments"),
        )
    ]
    return sorted({tile.m for problem in posed for tile in candidates(problem)})


@pytest.mark.parametrize("mean_over_std", [100.0, 1000.0])
@pytest.mark.parametrize(
    ("dtype", "rows"),
    [pytest.param(dtype, rows, id=f"{dtype}-{rows}") for dtype in DTYPES for rows in row_tiles(dtype)],
)
def test_variance_of_values_far_from_zero(mean_over_std: float, dtype: torch.dtype, rows: int) -> None:
    """Two tiles and a rest; the tiles' means lie one std apart, so that every error of a mean is in the variance."""
    x = activation(1, 16, 5, rows // 2, mean=mean_over_std)
    x[:, :, 2:4] += 1
    identity = torch.eye(16, dtype=dtype)[:, :, None, None]
    running = torch.zeros(16), torch.ones(16)
    with tiles(Tile(rows, 16, 16)):
        y, partials = convolution.conv_moments(x.to(dtype), identity, Conv(1, 1))
    assert torch.equal(y, x.to(dtype))
    assert partials.tiles == 3
    _, new = statistics.finalize(partials, torch.ones(16), torch.zeros(16), 1e-5, running, 1.0)
    assert new is not None
    count = y.numel() // 16
    assert_variance("variance", new[1], ground_truth.moments(y)[1] * count / (count - 1))


def run_everything(case: Case) -> list[Tensor]:
    """Every result of every operation here."""
    x, dy, w, vectors, shortcut = case.x(), case.dy(), case.weight(), case.vectors(), case.shortcut(2)
    results: list[Tensor | tuple[Tensor, Partials]] = [
        convolution.conv_moments(x, w, case.conv, vectors),
        convolution.dgrad_drelu(dy, w, case.conv, x, vectors),
        convolution.dgrad_block(dy, w, case.conv, shortcut, 2, x.relu(), x, vectors, x, vectors),
        convolution.dgrad_shortcut(dy, w, case.conv, x.shape, shortcut, 2),
        convolution.wgrad(x, dy, case.conv, vectors),
    ]
    pairs = [result if isinstance(result, tuple) else (result, None) for result in results]
    return [t for value, partials in pairs for t in ([value] if partials is None else [value, partials.rows])]


def test_the_same_input_gives_the_same_bits() -> None:
    runs: list[list[Tensor]] = []
    for _ in range(2):
        reseed(1)
        with tiles(Tile(32, 32, 32, splits=3)):
            runs.append(run_everything(Case(stride=2, dtype=torch.float16)))
    first, second = runs
    assert len(first) == 8
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_operands_may_lie_in_any_memory(small_tiles: Tile) -> None:
    case = Case(2, 2, stride=2, padding=0, h=6)
    x, dy, w, vectors, shortcut = case.x(), case.dy(), case.weight(), case.vectors(), case.shortcut(1)

    def run(lay: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [
            convolution.conv_moments(lay(x), lay(w), case.conv, vectors)[0],
            convolution.dgrad_drelu(lay(dy), lay(w), case.conv, lay(x), vectors)[0],
            convolution.dgrad_block(lay(dy), lay(w), case.conv, lay(shortcut), 1, x, x, vectors)[0],
            convolution.dgrad_shortcut(lay(dy), lay(w), case.conv, x.shape, lay(shortcut)),
            convolution.wgrad(lay(x), lay(dy), case.conv, vectors),
        ]

    def sliced(t: Tensor) -> Tensor:
        wider = torch.full((t.shape[0], t.shape[1] + 3, *t.shape[2:]), float("nan"))
        wider[:, 1:-2] = t
        return wider[:, 1:-2]

    for lay in (Tensor.contiguous, sliced):
        for dense, other in zip(run(lambda t: t), run(lay), strict=True):
            assert torch.equal(dense, other)


def test_where_the_table_says_reference_torch_computes() -> None:
    case = Case()
    with choosing(lambda _: REFERENCE):
        reseed(2)
        results = run_everything(case)
    with reference():
        reseed(2)
        expected = run_everything(case)
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("implementation", [kernels, reference])
def test_an_empty_batch_has_empty_results_and_a_gradient_of_zero(
    implementation: Callable[[], AbstractContextManager[None]],
) -> None:
    case = Case(n=0)
    with implementation():
        y, _, g, sums, *_, dw = run_everything(case)
    assert (y.shape, g.shape) == ((0, 24, 5, 5), (0, 20, 5, 5))
    assert sums.shape[0] == 2
    assert dw.shape == (24, 20, 3, 3)
    assert dw.count_nonzero() == 0


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        ((2, 8, 5, 5), (4, 9, 3, 3), r"\(2, 8, 5, 5\) and w \(4, 9, 3, 3\) do not fit a 3x3 convolution"),
        ((2, 8, 5, 5), (4, 8, 1, 1), "do not fit a 3x3 convolution"),
        ((8, 5, 5), (4, 8, 3, 3), r"x is \[N, C, H, W\]"),
        ((2, 8, 1, 5), (4, 8, 3, 3), "needs a larger input than 1x5"),
    ],
)
def test_operands_that_do_not_fit_are_refused(x: tuple[int, ...], w: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        convolution.conv_moments(torch.zeros(x), torch.zeros(w), Conv(3, 3))


def test_operands_of_two_dtypes_are_refused() -> None:
    x, w = activation(1, 4, 3, 3, torch.float16), weight(4, 4, 3, 3)
    with pytest.raises(ShapeError, match=r"x is torch\.float16 and w is torch\.float32: convert one"):
        convolution.conv_moments(x, w, Conv(3, 3))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64])
def test_a_dtype_without_a_kernel_is_refused(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 4, 3, 3, dtype=dtype)
    with pytest.raises(Unsupported, match="takes float32, float16 or bfloat16, not"):
        convolution.conv_moments(x, x, Conv(3, 3))


def test_the_tiles_that_are_chosen_by_default() -> None:
    case = Case(1, 1, padding=0, c=70, k=70)
    checks.check_conv_moments(case)
    checks.check_dgrad_drelu(case)
    checks.check_wgrad(case)


def test_a_shortcut_of_every_stride_reaches_its_own_pixels(small_tiles: Tile) -> None:
    case = Case(1, 1, padding=0, c=4, k=4, h=7, w=5)
    shortcut = case.shortcut(3)
    dx = convolution.dgrad_shortcut(
        torch.zeros(2, 4, 7, 5), case.weight(), case.conv, (2, 4, 7, 5), shortcut, 3
    )
    assert torch.equal(dx[:, :, ::3, ::3], shortcut)
    assert dx.count_nonzero() == shortcut.count_nonzero()


def test_partials_know_which_rows_they_stand_for(small_tiles: Tile) -> None:
    x, vectors = activation(3, 20, 5, 5), batch_norm_vectors(20)
    _, partials = convolution.conv_moments(x, weight(24, 20, 3, 3), Conv(3, 3, 2, 1), vectors)
    assert (partials.tiles, partials.channels, partials.per_tile, partials.count) == (1, 24, 32, 27)
    _, sums = convolution.dgrad_drelu(
        activation(3, 24, 3, 3), weight(24, 20, 3, 3), Conv(3, 3, 2, 1), x, vectors
    )
    # at most 27 pixels of each of the four parities, a tile each
    assert (sums.tiles, sums.channels, sums.count) == (4, 20, 75)
