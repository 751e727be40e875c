"""The references in plain PyTorch, which run wherever kernels do not, against the same truth as the kernels."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fused_kernels.launch import recording
from tests.fused_kernels import checks
from tests.fused_kernels.checks import Case, partials_of
from tests.fused_kernels.conftest import activation, reference, reseed
from tests.fused_kernels.strategies import cases

dtypes = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
wide = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    """References need only PyTorch."""


@pytest.fixture(autouse=True)
def only_references() -> Iterator[None]:
    """No kernel may be launched here."""
    with reference(), recording() as launches:
        yield
    assert launches == []


@dtypes
@pytest.mark.parametrize("prologue", [False, True])
def test_convolutions(dtype: torch.dtype, prologue: bool) -> None:
    case = Case(stride=2, h=6, dtype=dtype)
    checks.check_conv_moments(case, prologue=prologue)
    checks.check_conv_plain(case, prologue=prologue)
    checks.check_wgrad(case, prologue=prologue)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_strides_on_narrow_planes(dtype: torch.dtype) -> None:
    """oneDNN computes bf16 here with AMX, and wrongly."""
    case = Case(3, 4, stride=2, padding=2, n=1, c=13, k=13, h=7, w=1, dtype=dtype)
    checks.check_conv_moments(case, prologue=False)
    checks.check_conv_plain(case, prologue=True)


@dtypes
@pytest.mark.parametrize("stride", [1, 2])
def test_input_gradients(dtype: torch.dtype, stride: int) -> None:
    case = Case(stride=2, h=6, dtype=dtype)
    checks.check_dgrad_drelu(case)
    checks.check_dgrad_block(case, stride=stride)
    checks.check_dgrad_block(case, stride=stride, projection=True)
    checks.check_dgrad_shortcut(case, stride=stride)
    checks.check_dgrad_shortcut(case, stride=None)
    checks.check_closed_relu(Case(1, 1, padding=0, dtype=dtype))


@dtypes
@pytest.mark.parametrize("other", [False, True])
def test_passes(dtype: torch.dtype, other: bool) -> None:
    checks.check_join(Case(dtype=dtype), projection=other)
    checks.check_entry(Case(dtype=dtype), projection=other)
    checks.check_batch_norm_backward(Case(dtype=dtype), frozen=other)


@wide
@pytest.mark.parametrize("per_tile", [1, 7, 32, 50, 64])
def test_statistics(dtype: torch.dtype, per_tile: int) -> None:
    y = activation(2, 20, 5, 5, mean=3.0).to(dtype)
    checks.check_finalize(y, partials_of(y, per_tile), momentum=0.3, eps=1e-3)
    checks.check_merge(y, partials_of(y, per_tile))
    checks.check_frozen(20, dtype=dtype)
    checks.check_sums(3, 5, 20, dtype=dtype)


@settings(max_examples=40, deadline=None)
@given(cases(), st.booleans(), st.integers(1, 3), st.integers(0, 2**16))
def test_any_geometry(case: Case, prologue: bool, stride: int, seed: int) -> None:
    reseed(seed)
    with reference():
        checks.check_conv_moments(case, prologue=prologue)
        checks.check_wgrad(case, prologue=prologue)
        checks.check_dgrad_drelu(case)
        checks.check_dgrad_block(case, stride=stride, projection=prologue)
        checks.check_dgrad_shortcut(case, stride=stride)


@pytest.mark.parametrize("name", ["chain", "convolution", "head", "passes", "statistics", "stem"])
def test_every_operation_has_a_reference_with_its_signature(name: str) -> None:
    module, references = (import_module(f"fused_kernels.{folder}.{name}") for folder in ("ops", "references"))
    helpers = {"chain_fits", "head_scales", "launch_pass", "pass_tile", "stem_inference", "strip_length"}
    helpers |= {
        "finalize_all",
        "makes_dy",
        "norm_gradients",
    }  # several layers in one launch; references compute one
    for operation, function in vars(module).items():
        own = inspect.isfunction(function) and function.__module__ == module.__name__
        if own and not operation.startswith("_") and operation not in helpers:
            theirs = inspect.signature(getattr(references, operation)).parameters
            mine = [
                name for name in inspect.signature(function).parameters if name != "later"
            ]  # of launches alone
            assert mine == list(theirs), operation
