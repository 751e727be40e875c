"""NHWC memory without needless copies."""

from __future__ import annotations

import pytest
import torch

from fused_kernels.operands.layout import empty_nhwc, nhwc, per_channel


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    """Strides are the same anywhere."""


def test_nhwc_memory_is_not_copied() -> None:
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert nhwc(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (1, 1, 1, 1)])
def test_other_memory_becomes_nhwc(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    made = nhwc(x)
    assert torch.equal(made, x)
    assert torch.equal(made.permute(0, 2, 3, 1).contiguous().flatten(), made.as_strided((x.numel(),), (1,)))


def test_a_slice_becomes_dense() -> None:
    x = torch.randn(2, 8, 4, 4).contiguous(memory_format=torch.channels_last)[:, 2:5, ::2]
    assert nhwc(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(nhwc(x), x)


def test_empty_is_nhwc_and_takes_the_dtype_and_device_of_its_model() -> None:
    like = torch.empty(1, dtype=torch.float16, device="meta")
    made = empty_nhwc(like, 2, 3, 4, 5)
    assert (made.shape, made.dtype, made.device) == ((2, 3, 4, 5), torch.float16, like.device)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert empty_nhwc(like, 2, 3, 4, 5, dtype=torch.int8).dtype == torch.int8


def test_a_vector_meets_its_channels() -> None:
    x = torch.ones(2, 3, 4, 5) * per_channel(torch.tensor([1.0, 2.0, 3.0]))
    assert x.mean((0, 2, 3)).tolist() == [1.0, 2.0, 3.0]
