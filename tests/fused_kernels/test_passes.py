"""The passes between convolutions, against float64 autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fused_kernels.launch import recording
from fused_kernels.ops import passes
from tests.fused_kernels import checks
from tests.fused_kernels.checks import Case
from tests.fused_kernels.conftest import activation, batch_norm_vectors, normal, reseed
from tests.fused_kernels.launches import bytes_read, bytes_written
from tests.fused_kernels.strategies import FUZZ

dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
LARGE = Case(n=1, c=300, h=9, w=8)
"""72 rows and 300 channels are 2 x 3 tiles of 64 x 128."""

planes = st.builds(
    Case,
    n=st.integers(1, 3),
    c=st.integers(1, 40),
    h=st.integers(3, 9),
    w=st.integers(3, 9),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)


@dtypes
@pytest.mark.parametrize("projection", [False, True])
def test_join(dtype: torch.dtype, projection: bool) -> None:
    checks.check_join(Case(dtype=dtype), projection=projection)


@dtypes
@pytest.mark.parametrize("projection", [False, True])
def test_entry(dtype: torch.dtype, projection: bool) -> None:
    checks.check_entry(Case(dtype=dtype), projection=projection)


@dtypes
@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_backward(dtype: torch.dtype, frozen: bool) -> None:
    checks.check_batch_norm_backward(Case(dtype=dtype), frozen=frozen)


def test_several_tiles_each_way() -> None:
    checks.check_join(LARGE, projection=True)
    checks.check_entry(LARGE, projection=True)
    checks.check_batch_norm_backward(LARGE)


@FUZZ
@given(planes, st.booleans(), st.integers(0, 2**16))
def test_passes_of_any_shape(case: Case, other: bool, seed: int) -> None:
    reseed(seed)
    checks.check_join(case, projection=other)
    checks.check_entry(case, projection=other)
    checks.check_batch_norm_backward(case, frozen=other)


@pytest.mark.parametrize("rows", [511, 512, 513])
def test_rows_around_the_end_of_a_tile(rows: int) -> None:
    case = Case(n=1, c=5, h=1, w=rows)
    assert passes.pass_tile(5).m == 512
    checks.check_join(case)
    checks.check_entry(case)


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 64, 127, 128, 129, 2048])
def test_a_tile_has_8192_elements_and_no_idle_columns(channels: int) -> None:
    tile = passes.pass_tile(channels)
    assert tile.m * tile.n == 8192
    assert tile.n & (tile.n - 1) == 0
    assert tile.n == 128 or channels <= tile.n < max(17, 2 * channels)


def test_nothing_passes_a_closed_relu_also_exactly_at_zero() -> None:
    z = torch.zeros(1, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    for closed in (z, -z):
        g, partials = passes.entry(
            activation(1, 4, 2, 2), closed, activation(1, 4, 2, 2), batch_norm_vectors(4)
        )
        assert g.count_nonzero() == 0
        assert partials.rows.count_nonzero() == 0


def test_a_nan_stays_a_nan_in_its_own_place() -> None:
    y = activation(2, 5, 3, 3)
    y[1, 2, 0, 1] = float("nan")
    z = passes.join(y, batch_norm_vectors(5), activation(2, 5, 3, 3))
    assert torch.equal(z.isnan(), y.isnan())


def test_upstream_gradients_and_shortcuts_may_lie_in_any_memory() -> None:
    y, z, vectors = activation(2, 5, 3, 4), activation(2, 5, 3, 4).relu(), batch_norm_vectors(5)
    dz = normal(2, 5, 3, 4)
    expanded = normal(2, 5, 1, 1).expand(2, 5, 3, 4)
    for upstream in (dz, expanded):
        dense = upstream.contiguous(memory_format=torch.channels_last)
        assert torch.equal(passes.entry(upstream, z, y, vectors)[0], passes.entry(dense, z, y, vectors)[0])
        assert torch.equal(passes.join(y, vectors, upstream), passes.join(y, vectors, dense))
        assert torch.equal(passes.join(upstream, vectors, y), passes.join(dense, vectors, y))


def test_each_tensor_is_read_and_written_once() -> None:
    case = Case(dtype=torch.float16)
    x, vectors, size = case.x().to("meta"), case.vectors().to("meta"), 2 * 2 * 20 * 25
    with recording() as launches:
        passes.join(x, vectors, x, vectors)
        passes.entry(x, x, x, vectors, x, vectors)
        passes.bn_backward(x, x, vectors, vectors[:3])
    small = 4 * 4 * 20
    assert [bytes_read(launch) for launch in launches] == [
        2 * size + 2 * small,
        4 * size + 2 * small,
        2 * size + small + 3 * 4 * 20,
    ]
    assert [bytes_written(launch) for launch in launches] == [size, size + 3 * 4 * 20, size]


def test_the_same_input_gives_the_same_bits() -> None:
    x, y, vectors = activation(2, 20, 9, 9), activation(2, 20, 9, 9), batch_norm_vectors(20)
    first, second = (passes.entry(x, y, x, vectors, y, vectors) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1].rows, second[1].rows)
