"""Resizing of images and maps."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from calibration.execution.attributes import (
    Attributes,
    Operation,
    Optional,
    Unsupported,
    text_of,
)


def _resize(
    at: Attributes, x: Tensor, roi: Optional = None, scales: Optional = None, sizes: Optional = None
) -> Tensor:
    axes = [axis % x.ndim for axis in at.get("axes", range(x.ndim))]
    mode, where = (
        text_of(at.get("mode", "nearest")),
        text_of(at.get("coordinate_transformation_mode", "half_pixel")),
    )
    if mode == "cubic" or where == "tf_crop_and_resize" or at.get("antialias"):
        raise Unsupported(f"mode {mode}, {where}")
    if text_of(at.get("keep_aspect_ratio_policy", "stretch")) != "stretch":
        raise Unsupported("keep_aspect_ratio_policy")
    if scales is not None and scales.numel():
        factors = scales.tolist()
        lengths = [math.floor(x.shape[axis] * factor) for axis, factor in zip(axes, factors, strict=True)]
    else:
        assert sizes is not None
        lengths = sizes.tolist()
        factors = [length / x.shape[axis] for axis, length in zip(axes, lengths, strict=True)]
    for axis, length, factor in zip(axes, lengths, factors, strict=True):
        if factor != 1.0 or length != x.shape[axis]:
            x = _resize_axis(
                x, axis, length, factor, mode, where, text_of(at.get("nearest_mode", "round_prefer_floor"))
            )
    return x


def _resize_axis(
    x: Tensor, axis: int, length: int, factor: float, mode: str, where: str, nearest: str
) -> Tensor:
    size = x.shape[axis]
    at = np.arange(length, dtype=np.float64)
    if where == "align_corners":
        at = at * (size - 1) / (length - 1) if length > 1 else at * 0
    elif where == "asymmetric":
        at = at / factor
    elif where == "half_pixel_symmetric":
        whole = factor * size
        at = size / 2 * (1 - length / whole) + (at + 0.5) / factor - 0.5
    elif where == "pytorch_half_pixel" and length == 1:
        at = at * 0
    else:
        at = (at + 0.5) / factor - 0.5
    if mode == "nearest":
        # as in ONNX Runtime, coordinates are float32
        exact = at.astype(np.float32)
        rounded = {
            "round_prefer_floor": np.ceil(exact - np.float32(0.5)),
            "round_prefer_ceil": np.floor(exact + np.float32(0.5)),
            "floor": np.floor(exact),
            "ceil": np.ceil(exact),
        }[nearest]
        return x.index_select(axis, torch.from_numpy(np.clip(rounded, 0, size - 1).astype(np.int64)))
    at = np.clip(at, 0, size - 1)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, size - 1)
    part = torch.from_numpy(at - low).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1 - axis))
    left, right = (x.index_select(axis, torch.from_numpy(index)) for index in (low, high))
    return left * (1 - part) + right * part


RESIZING: dict[str, Operation] = {
    "Resize": _resize,
}
"""Functions by ONNX operator."""
