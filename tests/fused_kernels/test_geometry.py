"""The walks over taps and pixels, against enumeration of what a convolution reads. No tensors, no kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused_kernels.errors import ShapeError
from fused_kernels.operands.geometry import Axis, Conv, Gather, rows_of_parity

Meeting = tuple[int, int, int]
"""(output coordinate, tap, input coordinate) on one axis."""

axes = st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(0, 7), st.integers(1, 12))
"""(taps, stride, padding, size)."""


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    """Arithmetic runs anywhere."""


def meetings(taps: int, stride: int, padding: int, size: int) -> set[Meeting]:
    """Every (p, r, h) with h = p * stride - padding + r inside of the plane, by enumeration."""
    outputs = range((size + 2 * padding - taps) // stride + 1)
    every = ((p, r, p * stride - padding + r) for p in outputs for r in range(taps))
    return {(p, r, h) for p, r, h in every if 0 <= h < size}


def walk(axis: Axis, gather: Gather, rows: int, read: int) -> Iterator[Meeting]:
    """(output coordinate, tap, coordinate read) of a gather with ``rows`` rows that reads a plane of ``read``."""
    for o in range(rows):
        for i in range(axis.taps):
            at = o * gather.in_stride + axis.base + i * gather.step
            if 0 <= at < read:
                yield o * gather.out_stride + axis.out_base, axis.first + i * gather.every, at


@given(axes, st.booleans())
def test_fprop_reads_what_a_convolution_reads(axis: tuple[int, int, int, int], vertical: bool) -> None:
    taps, stride, padding, size = axis
    conv = Conv(taps, 1, stride, padding) if vertical else Conv(1, taps, stride, padding)
    if size + 2 * padding < taps:
        with pytest.raises(ShapeError):
            conv.output_size(size, size)
        return
    rows = conv.output_size(size, size)[0 if vertical else 1]
    gather = conv.fprop()
    found = walk(gather.h if vertical else gather.w, gather, rows, size)
    assert Counter(found) == Counter(meetings(taps, stride, padding, size))


@given(axes, st.booleans())
def test_dgrad_turns_every_meeting_round_once(axis: tuple[int, int, int, int], vertical: bool) -> None:
    taps, stride, padding, size = axis
    if size + 2 * padding < taps:
        return
    conv = Conv(taps, 1, stride, padding) if vertical else Conv(1, taps, stride, padding)
    read = conv.output_size(size, size)[0 if vertical else 1]
    gathers = conv.dgrad()
    found: Counter[Meeting] = Counter()
    for gather in gathers[::stride] if vertical else gathers[:stride]:  # one of each parity of this axis
        along = gather.h if vertical else gather.w
        found.update(walk(along, gather, rows_of_parity(size, along.out_base, stride), read))
    assert found == Counter((h, r, out) for out, r, h in meetings(taps, stride, padding, size))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_dgrad_has_one_gather_for_each_parity_of_both_axes(r: int, s: int, stride: int, padding: int) -> None:
    gathers = Conv(r, s, stride, padding).dgrad()
    parities = [(gather.h.out_base, gather.w.out_base) for gather in gathers]
    assert parities == [(h, w) for h in range(stride) for w in range(stride)]
    # every tap belongs to one parity, so that no product is made twice and none is left out
    assert sum(gather.h.taps * gather.w.taps for gather in gathers) == r * s


@given(st.integers(1, 20), st.integers(1, 5))
def test_parities_share_out_all_rows(size: int, stride: int) -> None:
    counted = [rows_of_parity(size, parity, stride) for parity in range(stride)]
    assert counted == [sum(i % stride == parity for i in range(size)) for parity in range(stride)]


@pytest.mark.parametrize(
    ("conv", "size", "expected"),
    [
        (Conv(7, 7, 2, 3), (224, 224), (112, 112)),
        (Conv(3, 3, 2, 1), (7, 6), (4, 3)),
        (Conv(1, 1, 2), (5, 5), (3, 3)),
        (Conv(3, 5), (3, 9), (1, 5)),
    ],
)
def test_output_sizes(conv: Conv, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert conv.output_size(*size) == expected


@pytest.mark.parametrize("size", [(2, 9), (9, 2)])
def test_a_window_larger_than_the_plane_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=f"a 3x3 convolution with padding 0 .* than {size[0]}x{size[1]}"):
        Conv(3, 3).output_size(*size)


@pytest.mark.parametrize(
    ("conv", "expected"),
    [
        (Conv(1, 1), True),
        (Conv(1, 1, 2), False),
        (Conv(1, 1, 1, 1), False),
        (Conv(1, 3), False),
        (Conv(3, 1), False),
    ],
)
def test_pointwise_reads_its_own_pixel_alone(conv: Conv, expected: bool) -> None:
    assert conv.pointwise is expected


def test_the_arguments_name_every_number_of_a_gather() -> None:
    gather = Gather(Axis(2, 1, -3, 1), Axis(3, 0, -2, 0), 5, -1, 2, 4)
    assert gather.named() == {
        **{"TAPS_H": 2, "FIRST_H": 1, "BASE_H": -3, "OUT_BASE_H": 1},
        **{"TAPS_W": 3, "FIRST_W": 0, "BASE_W": -2, "OUT_BASE_W": 0},
        **{"IN_STRIDE": 5, "STEP": -1, "EVERY": 2, "OUT_STRIDE": 4},
    }
