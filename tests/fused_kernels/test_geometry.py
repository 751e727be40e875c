"""The walks over taps and pixels, against enumeration of what a convolution reads. No tensors, no kernels."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused_kernels.errors import ShapeError
from fused_kernels.operands.geometry import Conv, Gather

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
    walked, base = (gather.taps_h, gather.base_h) if vertical else (gather.taps_w, gather.base_w)
    found = [
        (o, i, at)
        for o in range(rows)
        for i in range(walked)
        if 0 <= (at := o * gather.in_stride + base + i * gather.step) < size
    ]
    assert Counter(found) == Counter(meetings(taps, stride, padding, size))


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
    gather = Gather(2, 3, -3, -2, in_stride=5, step=-1, out_stride=4)
    assert gather.parities == 16
    assert gather.named() == {
        **{"TAPS_H": 2, "BASE_H": -3, "TAPS_W": 3, "BASE_W": -2},
        **{"IN_STRIDE": 5, "STEP": -1, "OUT_STRIDE": 4},
    }
