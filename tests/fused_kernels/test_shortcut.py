"""CIFAR's shortcut as a launch: the same bits as slicing and padding, for every dtype and geometry."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fused_kernels.errors import ShapeError
from fused_kernels.ops.shortcut import widen
from tests.fused_kernels.conftest import activation, kernels, reference

DTYPES = [torch.float32, torch.float16, torch.int8]
BOTH = pytest.mark.parametrize("implementation", [kernels, reference], ids=["kernel", "reference"])


@BOTH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1, 1, 1), (2, 16, 8, 8), (3, 20, 7, 5), (2, 130, 3, 33)])
@pytest.mark.parametrize(("stride", "before", "after"), [(2, 8, 8), (1, 0, 3), (2, 5, 0), (3, 0, 0)])
def test_pixels_and_channels(
    implementation: type, dtype: torch.dtype, size: tuple[int, ...], stride: int, before: int, after: int
) -> None:
    x = activation(*size, torch.float32, std=50.0).to(dtype)
    with implementation():
        y = widen(x, stride=stride, before=before, after=after)
    assert torch.equal(y, F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, after)))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("stride", "before", "after"), [(0, 1, 1), (2, -1, 1), (2, 1, -1)], ids=["stride", "before", "after"]
)
def test_what_makes_no_shortcut_is_refused(stride: int, before: int, after: int) -> None:
    with pytest.raises(ShapeError, match="make no shortcut"):
        widen(activation(1, 4, 4, 4), stride=stride, before=before, after=after)


def test_an_image_without_a_batch_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"x is \[N, C, H, W\]"):
        widen(torch.zeros(4, 4, 4), stride=2, before=1, after=1)
