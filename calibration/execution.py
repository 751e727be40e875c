"""ONNX operations on PyTorch tensors: each takes the node's attributes, then its inputs, None where one is left out.

They follow ONNX Runtime, which the tests compare them with, in whatever a residual network uses of an operator. A use
that is not covered raises ``Unsupported``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Attributes = Mapping[str, Any]
Optional = Tensor | None


class Unsupported(Exception):
    """A use of an operator that is not covered; the text says which."""


def windows(at: Attributes, size: Sequence[int], kernel: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding in front of and behind each spatial axis of an input of ``size``, from ``pads`` or ``auto_pad``."""
    auto = _text(at.get("auto_pad", "NOTSET"))
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


def padded(at: Attributes, x: Tensor, kernel: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """``x`` with what PyTorch cannot pad by itself already padded, and the padding that is left to PyTorch."""
    before, after = windows(at, x.shape[2:], kernel)
    if before == after:
        return x, before
    return F.pad(x, _last_first(before, after), value=value), [0] * len(kernel)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _last_first(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Widths as ``F.pad`` wants them: the last axis first."""
    return [width for pair in reversed(list(zip(before, after, strict=True))) for width in pair]


def _each(at: Attributes, name: str, count: int) -> list[int]:
    return list(at.get(name, [1] * count))


# weights


def _conv(at: Attributes, x: Tensor, weight: Tensor, bias: Optional = None) -> Tensor:
    count = x.ndim - 2
    x, padding = padded(at, x, weight.shape[2:])
    convolve: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[count - 1]
    return convolve(
        x,
        weight,
        bias,
        _each(at, "strides", count),
        padding,
        _each(at, "dilations", count),
        at.get("group", 1),
    )


def _conv_transpose(at: Attributes, x: Tensor, weight: Tensor, bias: Optional = None) -> Tensor:
    count = x.ndim - 2
    strides, dilations = _each(at, "strides", count), _each(at, "dilations", count)
    kernel, extra = weight.shape[2:], list(at.get("output_padding", [0] * count))
    whole = [
        stride * (length - 1) + (taps - 1) * dilation + 1
        for stride, length, taps, dilation in zip(strides, x.shape[2:], kernel, dilations, strict=True)
    ]
    auto = _text(at.get("auto_pad", "NOTSET"))
    if "output_shape" in at or auto.startswith("SAME"):
        wanted = at.get("output_shape", [n * s for n, s in zip(x.shape[2:], strides, strict=True)])[-count:]
        totals = [full + more - want for full, more, want in zip(whole, extra, wanted, strict=True)]
        before = [total // 2 if auto == "SAME_UPPER" else total - total // 2 for total in totals]
    else:
        pads = list(at.get("pads", [0] * 2 * count))
        before = pads[:count]
        wanted = [
            full + more - low - high
            for full, more, low, high in zip(whole, extra, before, pads[count:], strict=True)
        ]
    transposed: Callable[..., Tensor] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[
        count - 1
    ]
    y = transposed(x, weight, None, strides, 0, 0, at.get("group", 1), dilations)
    behind = [want + low - full for want, low, full in zip(wanted, before, whole, strict=True)]
    y = F.pad(y, _last_first([-low for low in before], behind))
    return y if bias is None else y + bias.reshape(-1, *[1] * count)


def _gemm(at: Attributes, a: Tensor, b: Tensor, c: Optional = None) -> Tensor:
    a = a.t() if at.get("transA") else a
    weight, alpha, beta = (
        b if at.get("transB") else b.t(),
        float(at.get("alpha", 1.0)),
        float(at.get("beta", 1.0)),
    )
    if alpha == 1.0 and beta == 1.0 and (c is None or c.ndim == 1):
        return F.linear(a, weight, c)
    product = alpha * F.linear(a, weight)
    return product if c is None else product + beta * c


# normalization


def _batch_norm(at: Attributes, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if at.get("training_mode"):
        raise Unsupported("training_mode")
    return F.batch_norm(x, mean, var, gamma, beta, eps=at.get("epsilon", 1e-5))


def _group_norm(at: Attributes, x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    groups = at["num_groups"]
    if len(gamma) == groups != x.shape[1]:  # opset 18 has one factor for each group
        gamma, beta = (values.repeat_interleave(x.shape[1] // groups) for values in (gamma, beta))
    return F.group_norm(x, groups, gamma, beta, at.get("epsilon", 1e-5))


def _layer_norm(at: Attributes, x: Tensor, gamma: Tensor, beta: Optional = None) -> Tensor:
    axis = at.get("axis", -1) % x.ndim
    y = F.layer_norm(x, x.shape[axis:], eps=at.get("epsilon", 1e-5)) * gamma
    return y if beta is None else y + beta


def _lrn(at: Attributes, x: Tensor) -> Tensor:
    size = at["size"]
    squares = F.pad(x.square().unsqueeze(1), [0, 0] * (x.ndim - 2) + [(size - 1) // 2, size // 2])
    near = squares.unfold(2, size, 1).sum(-1).squeeze(1) / size
    power = near.mul(at.get("alpha", 1e-4)).add(at.get("bias", 1.0)).pow(at.get("beta", 0.75))
    divided: Tensor = x / power
    return divided


# pooling and resizing


def _pooled(at: Attributes, size: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Padding in front of and behind each axis, and what ``ceil_mode`` adds behind that."""
    kernel = at["kernel_shape"]
    before, after = windows(at, size, kernel)
    beyond = [0] * len(kernel)
    if at.get("ceil_mode"):
        strides, dilations = _each(at, "strides", len(kernel)), _each(at, "dilations", len(kernel))
        for axis, (taps, stride) in enumerate(zip(kernel, strides, strict=True)):
            rest = size[axis] + before[axis] + after[axis] - (taps - 1) * dilations[axis] - 1
            steps = math.ceil(rest / stride)
            if (
                steps * stride >= size[axis] + before[axis]
            ):  # a window must begin within the input or in front of it
                steps -= 1
            beyond[axis] = max(steps * stride - rest, 0)
    return before, after, beyond


def _max_pool(at: Attributes, x: Tensor) -> Tensor:
    kernel = at["kernel_shape"]
    count = len(kernel)
    before, after, beyond = _pooled(at, x.shape[2:])
    behind = [a + b for a, b in zip(after, beyond, strict=True)]
    padding = before
    if before != behind or any(2 * low > taps for low, taps in zip(before, kernel, strict=True)):
        x, padding = F.pad(x, _last_first(before, behind), value=-math.inf), [0] * count
    pool: Callable[..., Tensor] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[count - 1]
    return pool(x, kernel, _each(at, "strides", count), padding, _each(at, "dilations", count))


def _average_pool(at: Attributes, x: Tensor) -> Tensor:
    kernel = at["kernel_shape"]
    count = len(kernel)
    if any(step != 1 for step in _each(at, "dilations", count)):
        raise Unsupported("dilations")
    before, after, beyond = _pooled(at, x.shape[2:])
    pool: Callable[..., Tensor] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[count - 1]
    strides, area = _each(at, "strides", count), math.prod(kernel)
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype)
    counted = F.pad(counted, _last_first(before, after), value=1.0 if at.get("count_include_pad") else 0.0)
    x = F.pad(x, _last_first(before, after))
    if any(beyond):
        x, counted = (F.pad(each, _last_first([0] * count, beyond)) for each in (x, counted))
    sums, numbers = (pool(each, kernel, strides) * area for each in (x, counted))
    return sums / numbers


def _global(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda at, x: reduce(x, tuple(range(2, x.ndim)), keepdim=True)


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduced(at: Attributes, x: Tensor, axes: Optional = None) -> Tensor:
        wanted = at.get("axes") if axes is None else axes.tolist()
        if not wanted:
            if at.get("noop_with_empty_axes"):
                return x
            wanted = range(x.ndim)
        return function(x, tuple(wanted), keepdim=bool(at.get("keepdims", 1)))

    return reduced


def _argmax(at: Attributes, x: Tensor) -> Tensor:
    if at.get("select_last_index"):
        raise Unsupported("select_last_index")
    return x.argmax(at.get("axis", 0), keepdim=bool(at.get("keepdims", 1)))


def _resize(
    at: Attributes, x: Tensor, roi: Optional = None, scales: Optional = None, sizes: Optional = None
) -> Tensor:
    axes = [axis % x.ndim for axis in at.get("axes", range(x.ndim))]
    mode, where = (
        _text(at.get("mode", "nearest")),
        _text(at.get("coordinate_transformation_mode", "half_pixel")),
    )
    if mode == "cubic" or where == "tf_crop_and_resize" or at.get("antialias"):
        raise Unsupported(f"mode {mode}, {where}")
    if _text(at.get("keep_aspect_ratio_policy", "stretch")) != "stretch":
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
                x, axis, length, factor, mode, where, _text(at.get("nearest_mode", "round_prefer_floor"))
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


# moving values


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
    half, mode = len(amounts) // 2, _text(at.get("mode", "constant"))
    before, after = [0] * x.ndim, [0] * x.ndim
    for position, axis in enumerate(along):
        before[axis], after[axis] = int(amounts[position]), int(amounts[position + half])
    if mode == "constant":
        fill = 0.0 if value is None or not value.numel() else float(value)
        return F.pad(x, _last_first(before, after), value=fill if x.is_floating_point() else int(fill))
    for axis, pair in enumerate(zip(before, after, strict=True)):
        if any(pair):
            places = np.arange(x.shape[axis])[max(-pair[0], 0) : x.shape[axis] - max(-pair[1], 0)]
            places = np.pad(
                places, (max(pair[0], 0), max(pair[1], 0)), cast("Literal['edge', 'reflect', 'wrap']", mode)
            )
            x = x.index_select(axis, torch.from_numpy(places))
    return x


def _split(at: Attributes, x: Tensor, sizes: Optional = None) -> Tensor:
    """The part number ``part`` of ``parts``; ``read_nodes`` makes one node of each output."""
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
    if _text(at.get("mode", "DCR")) == "CRD":
        x = x.reshape(images, channels // size**2, size, size, height, width).permute(0, 1, 4, 2, 5, 3)
    else:
        x = x.reshape(images, size, size, channels // size**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(images, channels // size**2, height * size, width * size)


def _space_to_depth(at: Attributes, x: Tensor) -> Tensor:
    images, channels, height, width = x.shape
    size = at["blocksize"]
    x = x.reshape(images, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(images, channels * size**2, height // size, width // size)


# arithmetic and activations


def _divide(at: Attributes, left: Tensor, right: Tensor) -> Tensor:
    return left / right if left.is_floating_point() else torch.div(left, right, rounding_mode="trunc")


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def folded(at: Attributes, *inputs: Tensor) -> Tensor:
        result = inputs[0]
        for each in inputs[1:]:
            result = function(result, each)
        return result

    return folded


def _mean(at: Attributes, *inputs: Tensor) -> Tensor:
    return _variadic(torch.add)(at, *inputs) / len(inputs)


def _clip(at: Attributes, x: Tensor, low: Optional = None, high: Optional = None) -> Tensor:
    bounds = [at.get("min") if low is None else low.item(), at.get("max") if high is None else high.item()]
    return x if bounds == [None, None] else x.clamp(*bounds)


def _hard_sigmoid(at: Attributes, x: Tensor) -> Tensor:
    return (float(at.get("alpha", 0.2)) * x + float(at.get("beta", 0.5))).clamp(0, 1)


def _celu(at: Attributes, x: Tensor) -> Tensor:
    return F.celu(x, at.get("alpha", 1.0))


def _elu(at: Attributes, x: Tensor) -> Tensor:
    return F.elu(x, at.get("alpha", 1.0))


def _selu(at: Attributes, x: Tensor) -> Tensor:
    alpha, gamma = at.get("alpha", 1.67326319217681884765625), at.get("gamma", 1.05070102214813232421875)
    return F.elu(x, alpha) * float(gamma)


def _gelu(at: Attributes, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=_text(at.get("approximate", "none")))


def _thresholded(at: Attributes, x: Tensor) -> Tensor:
    return torch.where(x > at.get("alpha", 1.0), x, torch.zeros((), dtype=x.dtype))


# shapes and 8-bit numbers


def _constant(at: Attributes) -> Tensor:
    from onnx import numpy_helper

    if "value" in at:
        return torch.from_numpy(numpy_helper.to_array(at["value"]).copy())
    kinds = {
        "value_float": torch.float32,
        "value_floats": torch.float32,
        "value_int": torch.int64,
        "value_ints": torch.int64,
    }
    name = next((name for name in kinds if name in at), None)
    if name is None:
        raise Unsupported("a sparse or text value")
    return torch.tensor(at[name], dtype=kinds[name])


def _constant_of_shape(at: Attributes, shape: Tensor) -> Tensor:
    from onnx import numpy_helper

    value = torch.from_numpy(numpy_helper.to_array(at["value"]).copy()) if "value" in at else torch.zeros(1)
    return value.expand(shape.tolist())


def _shape(at: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(list(x.shape)[at.get("start", 0) : at.get("end", x.ndim)], dtype=torch.int64)


_TYPES = {
    1: torch.float32, 10: torch.float16, 11: torch.float64, 2: torch.uint8, 3: torch.int8, 6: torch.int32,
    7: torch.int64, 9: torch.bool,
}  # fmt: skip
"""By ONNX element type."""


def _quantize(at: Attributes, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    steps, zero = _along(at, x, scale), _along(at, x, zero_point)
    return ((x / steps).round() + zero).clamp(-128, 127).to(torch.int8)


def _dequantize(at: Attributes, q: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    steps = q.to(scale.dtype) - _along(at, q, zero_point.to(scale.dtype))
    return steps * _along(at, q, scale)


def _along(at: Attributes, x: Tensor, values: Tensor) -> Tensor:
    """``values`` [K] along the node's axis; a single number as it is."""
    if values.numel() == 1:
        return values.reshape(())
    shape = [1] * x.ndim
    shape[at.get("axis", 1)] = -1
    return values.reshape(shape)


OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": lambda at, a, b: a @ b,
    "BatchNormalization": _batch_norm, "GroupNormalization": _group_norm, "LayerNormalization": _layer_norm,
    "LRN": _lrn,
    "InstanceNormalization": lambda at, x, gamma, beta: F.instance_norm(
        x, weight=gamma, bias=beta, eps=at.get("epsilon", 1e-5)
    ),
    "MaxPool": _max_pool, "AveragePool": _average_pool,
    "GlobalMaxPool": _global(torch.amax), "GlobalAveragePool": _global(torch.mean), "Resize": _resize,
    "ReduceMean": _reduce(torch.mean), "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax), "ReduceMin": _reduce(torch.amin), "ArgMax": _argmax,
    "Slice": _slice, "Pad": _pad, "Split": _split, "Concat": lambda at, *inputs: torch.cat(inputs, at["axis"]),
    "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze, "Expand": _expand,
    "Transpose": lambda at, x: x.permute(at.get("perm", list(reversed(range(x.ndim))))),
    "Tile": lambda at, x, repeats: x.repeat(repeats.tolist()), "Gather": _gather,
    "DepthToSpace": _depth_to_space, "SpaceToDepth": _space_to_depth,
    "Identity": lambda at, x: x, "Dropout": lambda at, x, *rest: x, "Cast": lambda at, x: x.to(_TYPES[at["to"]]),
    "Add": lambda at, left, right: left + right, "Sub": lambda at, left, right: left - right,
    "Mul": lambda at, left, right: left * right, "Div": _divide,
    "Sum": _variadic(torch.add), "Max": _variadic(torch.maximum), "Min": _variadic(torch.minimum), "Mean": _mean,
    "Relu": lambda at, x: x.relu(), "Abs": lambda at, x: x.abs(), "Neg": lambda at, x: -x,
    "LeakyRelu": lambda at, x: F.leaky_relu(x, at.get("alpha", 0.01)),
    "PRelu": lambda at, x, slope: torch.where(x < 0, x * slope, x), "ThresholdedRelu": _thresholded,
    "Clip": _clip, "Sigmoid": lambda at, x: x.sigmoid(), "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda at, x: F.hardswish(x), "Softplus": lambda at, x: F.softplus(x), "Mish": lambda at, x: F.mish(x),
    "Softsign": lambda at, x: F.softsign(x), "Gelu": _gelu, "Elu": _elu, "Selu": _selu, "Celu": _celu,
    "Tanh": lambda at, x: x.tanh(), "Erf": lambda at, x: x.erf(), "Exp": lambda at, x: x.exp(),
    "Log": lambda at, x: x.log(), "Sqrt": lambda at, x: x.sqrt(), "Reciprocal": lambda at, x: x.reciprocal(),
    "Pow": lambda at, x, power: x.pow(power), "Floor": lambda at, x: x.floor(), "Ceil": lambda at, x: x.ceil(),
    "Softmax": lambda at, x: x.softmax(at.get("axis", -1)),
    "LogSoftmax": lambda at, x: x.log_softmax(at.get("axis", -1)),
    "Constant": _constant, "ConstantOfShape": _constant_of_shape, "Shape": _shape,
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize,
}  # fmt: skip
"""By ONNX operator."""
