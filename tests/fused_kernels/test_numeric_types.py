"""Precision of products, and dtypes that are refused."""

from __future__ import annotations

import pytest
import torch

from fused_kernels.errors import Unsupported
from fused_kernels.operands.numeric_types import precision, require_float


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    """Only torch is needed to read torch's settings."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch says that there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("allowed", "expected"), [(True, "tf32"), (False, "ieee")])
@pytest.mark.parametrize("generation", ["this torch", "torch before 2.9"])
def test_tf32_is_used_where_torch_lets_cudnn_use_it(
    generation: str, allowed: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Older:
        allow_tf32 = allowed

    if generation == "this torch":
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
    else:
        monkeypatch.setattr(torch.backends, "cudnn", Older)
    assert precision(torch.float32) == expected


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
def test_other_types_are_multiplied_as_they_are(dtype: torch.dtype) -> None:
    assert precision(dtype) == "ieee"


def test_without_a_gpu_fp32_is_multiplied_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert precision(torch.float32) == "ieee"


def test_floating_point_kernels_refuse_integers() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        require_float(dtype, what="a fused thing")
    with pytest.raises(Unsupported, match="a fused thing takes float32, float16 or bfloat16, not int8"):
        require_float(torch.int8, what="a fused thing")
