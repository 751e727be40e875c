"""The one table of tolerances of the kernels' tests, by dtype and kind of result.

Errors are relative L2 distances to ground truth in float64, |result - truth| / |truth|.

- ``PRODUCT``: results of convolutions and of the passes, as stored. fp32 must come within ``absolute``; 16-bit types
  within twice the error of the same computation by PyTorch in the same dtype, plus ``absolute``.
- ``SUM``: sums over pixels, and vectors made from them: fp32 or wider, whatever the activation's dtype.
- ``VARIANCE``: batch variances, each channel's relative error, also where mean/std is 1000.

Triton's interpreter truncates where it stores bf16, and truncation is off by up to 2**-7 of a number, by 2**-8 on
average just above a power of two. It errs to one side, so that what a prologue stores does not average out in the
product. The row of bf16 allows for 2**-8 once; on a GPU bf16 would pass with the row of fp16.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """Allowed: ``times`` the error of PyTorch in the same dtype, plus ``absolute``."""

    absolute: float
    times: float = 0.0


PRODUCT = "product"
SUM = "sum"
VARIANCE = "variance"

TABLE = {
    (PRODUCT, torch.float64): Tolerance(1e-12),
    (PRODUCT, torch.float32): Tolerance(1e-5),
    (PRODUCT, torch.float16): Tolerance(1e-5, times=2),
    (PRODUCT, torch.bfloat16): Tolerance(2**-8, times=2),
    (SUM, torch.float64): Tolerance(1e-12),
    (SUM, torch.float32): Tolerance(1e-5),
    (VARIANCE, torch.float64): Tolerance(1e-9),
    (VARIANCE, torch.float32): Tolerance(1e-5),
}


def distance(result: Tensor, truth: Tensor, scale: Tensor | None = None) -> float:
    """|result - truth| / |scale|, in float64; infinite where only one side has a NaN or infinity.

    Args:
        result: of a kernel or a reference.
        truth: the same in float64.
        scale: what the error is relative to, ``truth`` itself by default.
    """
    a, b = result.detach().double(), truth.detach().double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    difference = float((a - b).nan_to_num(0.0, 0.0, 0.0).norm())
    size = float((b if scale is None else scale.double()).nan_to_num(0.0, 0.0, 0.0).norm())
    return difference / size if size > 0 else difference


def assert_close(
    name: str,
    result: Tensor,
    truth: Tensor,
    kind: str = PRODUCT,
    *,
    torchs: Tensor | None = None,
    dtype: torch.dtype | None = None,
    scale: Tensor | None = None,
) -> None:
    """Hold ``result`` against ``truth`` by the table; a failure names the tensor.

    Args:
        name: the name of the tensor.
        result: of a kernel or a reference.
        truth: the same in float64.
        kind: ``PRODUCT`` or ``SUM``.
        torchs: PyTorch's result, for dtypes that are held against it.
        dtype: whose row to take, that of ``result`` by default; a weight's gradient is fp32 and comes from 16 bits.
        scale: as in ``distance``: sums that cancel are exact only to what their terms add up to.
    """
    assert result.shape == truth.shape, f"{name} has shape {tuple(result.shape)}, not {tuple(truth.shape)}"
    dtype = dtype or result.dtype
    tolerance = TABLE[kind, dtype]
    allowed = tolerance.absolute
    if tolerance.times:
        assert torchs is not None, f"{name} in {dtype} needs PyTorch's result to be held against"
        allowed += tolerance.times * distance(torchs, truth, scale)
    error = distance(result, truth, scale)
    assert error <= allowed, f"{name} is off by {error:.2e}, {allowed:.2e} allowed ({dtype}, {kind})"


def assert_variance(name: str, variance: Tensor, truth: Tensor) -> None:
    """Each channel's relative error against ``truth`` in float64."""
    assert variance.shape == truth.shape, (
        f"{name} has shape {tuple(variance.shape)}, not {tuple(truth.shape)}"
    )
    error = ((variance.double() - truth.double()) / truth.double()).abs().max().item()
    allowed = TABLE[VARIANCE, variance.dtype].absolute
    assert error <= allowed, f"{name} is off by {error:.2e} in some channel, {allowed:.2e} allowed"
