"""Packing of an image and its weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fused_kernels.operands.geometry import Conv
from fused_kernels.operands.packed_image import depth, pack_weight, packed_width, span, unpack_weight
from tests.fused_kernels.conftest import normal

IMAGENET, CIFAR = Conv(7, 7, 2, 3), Conv(3, 3, 1, 1)


@pytest.mark.parametrize(("s", "pixels"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (7, 8), (8, 8), (9, 16)])
def test_a_tap_row_spans_the_next_power_of_two(s: int, pixels: int) -> None:
    assert span(Conv(3, s)) == pixels
    assert depth(Conv(3, s)) == 4 * pixels


@pytest.mark.parametrize("conv", [IMAGENET, CIFAR, Conv(5, 5, 3, 2), Conv(1, 1, 4, 0)], ids=str)
@pytest.mark.parametrize("width", [1, 2, 9, 32, 224, 225])
def test_a_packed_row_holds_the_image_and_every_window(conv: Conv, width: int) -> None:
    columns = (width + 2 * conv.padding - conv.s) // conv.stride + 1
    packed = packed_width(conv, width, columns)
    assert packed >= conv.padding + width
    assert packed >= (columns - 1) * conv.stride + span(conv)
    assert packed % 16 == 0  # else the loads of a 7x7/2 convolution are 8 bytes wide


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("conv", [IMAGENET, CIFAR, Conv(2, 5)], ids=str)
def test_a_packed_weight_meets_packed_pixels(conv: Conv, channels: int) -> None:
    w = normal(6, channels, conv.r, conv.s)
    window = normal(1, channels, conv.r, conv.s)
    row = torch.full((conv.r, span(conv), 4), 3.0)  # what lies beside the window must not count
    row[:, : conv.s, :channels] = window[0].permute(1, 2, 0)
    packed = pack_weight(w, conv)
    assert packed.shape == (6, conv.r, depth(conv))
    assert packed.is_contiguous()
    torch.testing.assert_close(packed.flatten(1) @ row.flatten(), F.conv2d(window, w)[0, :, 0, 0])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("conv", [IMAGENET, CIFAR, Conv(2, 5)], ids=str)
def test_a_weight_comes_back_from_its_packed_form_in_krsc_memory(conv: Conv, channels: int) -> None:
    w = normal(6, channels, conv.r, conv.s)
    back = unpack_weight(pack_weight(w, conv), conv, channels)
    assert torch.equal(back, w)
    assert back.is_contiguous(memory_format=torch.channels_last)
