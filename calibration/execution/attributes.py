"""The attributes of ONNX nodes: padding, text, and one number for each axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

Attributes = Mapping[str, Any]
Optional = Tensor | None
Operation = Callable[..., Tensor]
"""It takes the attributes of a node, then its inputs."""


class Unsupported(Exception):
    """A use of an operator that is not covered; the text says which."""


def windows(at: Attributes, size: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding in front of and behind each spatial axis of an input of ``size``, from ``pads`` or ``auto_pad``."""
    auto = text_of(at.get("auto_pad", "NOTSET"))
    count = len(kernel)
    if auto in ("NOTSET", ""):
        pads = list(at.get("pads", [0] * 2 * count))
        return pads[:count], pads[count:]
    if auto == "VALID":
        return [0] * count, [0] * count
    strides, dilations = at.get("strides", [1] * count), at.get("dilations", [1] * count)
    before, after = [], []
    for length, taps, stride, dilation in zip(size, kernel, strides, dilations, strict=True):
        total = max((math.ceil(length / stride) - 1) * stride + (taps - 1) * dilation + 1 - length, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return before, after


def padded(at: Attributes, x: Tensor, kernel: Sequence[int]) -> tuple[Tensor, list[int]]:
    """``x`` with what PyTorch cannot pad by itself already padded, and the padding that is left to PyTorch."""
    before, after = windows(at, x.shape[2:], kernel)
    if before == after:
        return x, before
    return F.pad(x, last_first(before, after)), [0] * len(kernel)


def text_of(value: bytes | str) -> str:
    """The text of an attribute."""
    return value.decode() if isinstance(value, bytes) else value


def last_first(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Widths as ``F.pad`` wants them: the last axis first."""
    return [width for pair in reversed(list(zip(before, after, strict=True))) for width in pair]


def per_axis(at: Attributes, name: str, count: int) -> list[int]:
    """Numbers of the attribute ``name``, one for each of ``count`` axes; 1 where it is left out."""
    return list(at.get(name, [1] * count))
