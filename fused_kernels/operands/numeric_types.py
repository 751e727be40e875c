"""Number formats of kernels: dtypes that they take, and the precision of their products."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_kernels.errors import ShapeError, Unsupported

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def precision(dtype: torch.dtype) -> str:
    """The precision of ``tl.dot``: TF32 for fp32 exactly where torch lets cuDNN use it, full precision otherwise."""
    if dtype == torch.float32 and torch.cuda.is_available() and _cudnn_uses_tf32():
        return "tf32"
    return "ieee"


def _cudnn_uses_tf32() -> bool:
    conv = getattr(torch.backends.cudnn, "conv", None)  # torch 2.9 and newer
    if conv is None:
        return bool(torch.backends.cudnn.allow_tf32)
    return bool(conv.fp32_precision == "tf32")


def require_float(dtype: torch.dtype, *, what: str) -> None:
    """Raise ``Unsupported`` unless ``dtype`` is fp32, fp16, bf16 or fp64 (which plain PyTorch computes)."""
    if dtype not in FLOATS and dtype != torch.float64:
        raise Unsupported(
            f"{what} takes float32, float16 or bfloat16, not {str(dtype).removeprefix('torch.')}"
        )


def compute_dtype(x: Tensor, weight: Tensor, *, what: str) -> torch.dtype:
    """Autocast's dtype where autocast is on for the device of ``x``, otherwise that of both operands.

    Raises:
        ShapeError: the two differ and autocast is off.
    """
    device = x.device.type
    if (
        x.dtype != torch.float64
        and torch.amp.is_autocast_available(device)
        and torch.is_autocast_enabled(device)
    ):
        return torch.get_autocast_dtype(device)
    if x.dtype != weight.dtype:
        raise ShapeError(
            f"the {what} is {x.dtype} and the weights are {weight.dtype}: convert one, or use autocast"
        )
    return weight.dtype
