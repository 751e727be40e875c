"""The weight's gradient, split over pixels or not, against float64 autograd."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fused_kernels.launch import recording
from fused_kernels.operands.geometry import Conv
from fused_kernels.ops import convolution
from fused_kernels.ops.convolution import MOST_CHANNELS
from fused_kernels.tiles import Tile
from tests.fused_kernels import checks
from tests.fused_kernels.checks import Case
from tests.fused_kernels.conftest import reseed, tiles
from tests.fused_kernels.launches import bytes_written
from tests.fused_kernels.strategies import FUZZ, tiled_cases


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("prologue", [False, True])
def test_wgrad(dtype: torch.dtype, prologue: bool, small_tiles: Tile) -> None:
    checks.check_wgrad(Case(2, 2, dtype=dtype), prologue=prologue)


@FUZZ
@given(tiled_cases("wgrad"), st.booleans(), st.integers(0, 2**16))
def test_wgrad_of_any_geometry(made: tuple[Case, Tile], prologue: bool, seed: int) -> None:
    reseed(seed)
    with tiles(made[1]):
        checks.check_wgrad(made[0], prologue=prologue)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("prologue", [False, True])
def test_dy_is_made_on_the_way(dtype: torch.dtype, stride: int, prologue: bool, small_tiles: Tile) -> None:
    case = Case(1, 1, stride=stride, padding=0, c=40, k=33, dtype=dtype)
    checks.check_wgrad_and_dy(case, prologue=prologue)


@pytest.mark.parametrize("splits", [1, 3])
def test_whole_blocks_mask_nothing_but_padding(splits: int) -> None:
    with tiles(Tile(32, 32, 16, splits=splits)), recording() as launches:
        checks.check_wgrad(
            Case(3, 3, n=5, c=32, k=64, h=4, w=4)
        )  # five blocks of pixels in parts of one or two
        checks.check_wgrad_and_dy(Case(1, 1, padding=0, n=5, c=64, k=32, h=4, w=4))
    assert all(one.arguments["WHOLE"] for one in launches if one.kernel == "wgrad.wgrad_kernel")


@pytest.mark.parametrize("splits", [1, 3])
def test_every_part_makes_its_own_dy(splits: int) -> None:
    with tiles(Tile(16, 16, 16, splits=splits)):
        checks.check_wgrad_and_dy(Case(1, 1, padding=0, n=3, h=5, w=7, c=33, k=40))


@pytest.mark.parametrize(
    ("conv", "channels", "made"),
    [
        (Conv(1, 1), MOST_CHANNELS, True),
        (Conv(1, 1, stride=2), 64, True),
        (Conv(1, 1), MOST_CHANNELS + 1, False),
        (Conv(1, 1, padding=1), 64, False),
        (Conv(3, 3, padding=1), 64, False),
    ],
)
def test_one_tap_without_padding_makes_dy(conv: Conv, channels: int, made: bool) -> None:
    assert convolution.makes_dy(conv, channels, torch.bfloat16) is made
    assert not convolution.makes_dy(conv, channels, torch.float32)


@pytest.mark.parametrize("splits", [1, 2, 3, 4, 5, 64])
def test_any_number_of_parts(splits: int) -> None:
    case = Case(1, 1, padding=0, n=1, h=7, w=11)
    with tiles(Tile(32, 32, 16, splits=splits)):
        checks.check_wgrad(case)


@pytest.mark.parametrize("pixels", [15, 16, 17, 31, 32, 33])
def test_pixels_around_the_end_of_a_block(pixels: int) -> None:
    with tiles(Tile(32, 32, 16, splits=2)):
        checks.check_wgrad(Case(1, 1, padding=0, n=1, h=1, w=pixels))


@pytest.mark.parametrize(("c", "k"), [(15, 33), (33, 15), (16, 32), (1, 1)])
def test_channels_around_the_end_of_a_tile(c: int, k: int) -> None:
    with tiles(Tile(16, 16, 32)):
        checks.check_wgrad(Case(1, 1, padding=0, c=c, k=k))


def test_the_parts_share_out_all_pixels_and_no_part_is_empty() -> None:
    case = Case(1, 1, padding=0, n=1, h=1, w=16 * 11)
    x, dy = (tensor.to("meta") for tensor in (case.x(), case.dy()))
    for splits in range(1, 12):
        with tiles(Tile(32, 32, 16, splits=splits)), recording() as launches:
            convolution.wgrad(x, dy, case.conv)
        parts, steps = launches[0].grid[2], launches[0].arguments["STEPS"]
        assert parts <= splits
        assert (parts - 1) * steps < 11 <= parts * steps


def test_one_part_needs_no_workspace() -> None:
    case = Case()
    for splits, kernels in ((1, ["wgrad_kernel"]), (2, ["wgrad_kernel", "split_sum_kernel"])):
        with tiles(Tile(32, 32, 32, splits=splits)), recording() as launches:
            dw = convolution.wgrad(case.x().to("meta"), case.dy().to("meta"), case.conv)
        assert [launch.kernel for launch in launches] == [f"wgrad.{name}" for name in kernels]
        assert bytes_written(launches[0]) == splits * dw.numel() * 4


def test_the_gradient_lies_as_the_weight_does(small_tiles: Tile) -> None:
    case = Case(2, 3, c=5, k=7)
    dw = convolution.wgrad(case.x(), case.dy(), case.conv)
    assert dw.is_contiguous(memory_format=torch.channels_last)
    assert dw.stride() == case.weight().stride()


def test_the_same_input_gives_the_same_bits_in_any_number_of_parts() -> None:
    case = Case(1, 1, padding=0, n=1, h=8, w=9)
    x, dy, vectors = case.x(), case.dy(), case.vectors()
    for splits in (1, 3):
        with tiles(Tile(32, 32, 16, splits=splits)):
            first, second = (convolution.wgrad(x, dy, case.conv, vectors) for _ in range(2))
        assert torch.equal(first, second)
