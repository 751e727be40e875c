"""Operations that only move values."""

from __future__ import annotations

import math
from typing import Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from calibration.execution.attributes import (
    Attributes,
    Operation,
    Optional,
    last_first,
    text_of,
)


def _slice(
    at: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Optional = None, steps: Optional = None
) -> Tensor:
    count = len(starts)
    along = range(count) if axes is None else axes.tolist()
    strides = [1] * count if steps is None else steps.tolist()
    cuts = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts.tolist(), ends.tolist(), along, strides, strict=True):
        if step > 0:
            cuts[axis] = slice(start, end, step)
        else:
            size = x.shape[axis]
            first, stop = (place + size if place < 0 else place for place in (start, end))
            taken = range(min(max(first, 0), size - 1), min(max(stop, -1), size - 1), step)
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64))
    return x[tuple(cuts)]


def _pad(at: Attributes, x: Tensor, amounts: Tensor, value: Optional = None, axes: Optional = None) -> Tensor:
    along = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    half, mode = len(amounts) // 2, text_of(at.get("mode", "constant"))
    before, after = [0] * x.ndim, [0] * x.ndim
    for position, axis in enumerate(along):
        before[axis], after[axis] = int(amounts[position]), int(amounts[position + half])
    if mode == "constant":
        fill = 0.0 if value is None or not value.numel() else float(value)
        return F.pad(x, last_first(before, after), value=fill if x.is_floating_point() else int(fill))
    for axis, pair in enumerate(zip(before, after, strict=True)):
        if any(pair):
            places = np.arange(x.shape[axis])[max(-pair[0], 0) : x.shape[axis] - max(-pair[1], 0)]
            places = np.pad(
                places, (max(pair[0], 0), max(pair[1], 0)), cast("Literal['edge', 'reflect', 'wrap']", mode)
            )
            x = x.index_select(axis, torch.from_numpy(places))
    return x


def _split(at: Attributes, x: Tensor, sizes: Optional = None) -> Tensor:
    """One output of a Split, number ``part`` of ``parts``: ``read_nodes`` makes a node for each output."""
    axis = at.get("axis", 0) % x.ndim
    lengths = at.get("split") if sizes is None else sizes.tolist()
    if not lengths:
        each = math.ceil(x.shape[axis] / at["parts"])
        lengths = [each] * (at["parts"] - 1) + [x.shape[axis] - each * (at["parts"] - 1)]
    return x.narrow(axis, sum(lengths[: at["part"]]), lengths[at["part"]])


def _reshape(at: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    wanted = shape.tolist()
    if not at.get("allowzero"):
        wanted = [x.shape[axis] if length == 0 else length for axis, length in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(at: Attributes, x: Tensor) -> Tensor:
    axis = at.get("axis", 1)
    axis = axis % x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(at: Attributes, x: Tensor, axes: Optional = None) -> Tensor:
    wanted = at.get("axes") if axes is None else axes.tolist()
    return x.squeeze() if wanted is None else x.squeeze(tuple(wanted))


def _unsqueeze(at: Attributes, x: Tensor, axes: Optional = None) -> Tensor:
    wanted = at["axes"] if axes is None else axes.tolist()
    rank = x.ndim + len(wanted)
    for axis in sorted(axis % rank for axis in wanted):
        x = x.unsqueeze(axis)
    return x


def _expand(at: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist())))


def _gather(at: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = at.get("axis", 0) % x.ndim
    found = x.index_select(axis, indices.long().reshape(-1) % x.shape[axis])
    return found.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _depth_to_space(at: Attributes, x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    size = at["blocksize"]
    if text_of(at.get("mode", "DCR")) == "CRD":
        x = x.reshape(images, channels // size**2, size, size, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        x = x.reshape(images, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(images, channels // size**2, height * size, width * size)


def _space_to_depth(at: Attributes, x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    size = at["blocksize"]
    x = x.reshape(images, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(images, channels * size**2, height // size, width // size)


MOVEMENT: dict[str, Operation] = {
    "Slice": _slice,
    "Pad": _pad,
    "Split": _split,
    "Concat": lambda at, *inputs: torch.cat(inputs, at["axis"]),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Expand": _expand,
    "Transpose": lambda at, x: x.permute(at.get("perm", list(reversed(range(x.ndim))))),
    "Tile": lambda at, x, repeats: x.repeat(repeats.tolist()),
    "Gather": _gather,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Identity": lambda at, x: x,
    "Dropout": lambda at, x, *rest: x,
}
"""Functions by ONNX operator."""
