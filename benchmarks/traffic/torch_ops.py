"""Bytes that PyTorch's own operations move, counted from the arguments of the ``aten`` calls on meta tensors.

An operation reads each tensor that it is given and writes each one that it returns, once, but for

    views, ``empty`` and its like         nothing
    in-place operations                   the tensor is read and written
    native_batch_norm, training           its input is read twice: statistics, then normalization
    native_batch_norm_backward, training  both gradient and input twice: sums, then dx
    convolution                           of a strided 1x1 the pixels that it meets, as in ``footprint``
    convolution_backward                  the gradient once for each result that is asked for (two kernels)
    max_pool2d_with_indices_backward      the pool's input not at all: its kernel needs the indices alone
    an expanded tensor                    the elements that it has in memory
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.traffic.footprint import Bytes
from benchmarks.traffic.shapes import touched

UNWRITTEN = ("empty", "new_empty")
"""Operations that only allocate."""


class TorchOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the bytes of every ``aten`` operation in its context, by the operation's name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = Bytes()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Count, then run the operation."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name.startswith(UNWRITTEN)):
            self.bytes[name] += moved(func, args, kwargs or {}, result)
        return result


def moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Bytes that one operation reads and writes."""
    arguments = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    special = PASSES.get(func.overloadpacket.__name__)
    factors = {} if special is None else special(arguments)
    total = 0.0
    for name, value in arguments.items():
        total += factors.get(name, 1) * sum(
            in_memory(leaf) for leaf in tree_leaves(value) if isinstance(leaf, Tensor)
        )
    return round(total) + sum(in_memory(leaf) for leaf in tree_leaves(result) if isinstance(leaf, Tensor))


def in_memory(tensor: Tensor) -> int:
    """Bytes of a tensor; dimensions that ``expand`` made are not repeated in memory."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return torch.Size(sizes).numel() * tensor.element_size()


def _convolution(arguments: dict[str, Any]) -> dict[str, float]:
    return {"input": _met(arguments)}


def _convolution_backward(arguments: dict[str, Any]) -> dict[str, float]:
    results = sum(arguments["output_mask"])
    wants_weight = arguments["output_mask"][1]
    return {
        "grad_output": results,
        "input": _met(arguments) if wants_weight else 0,
        "weight": arguments["output_mask"][0],
    }


def _met(arguments: dict[str, Any]) -> float:
    """Part of a convolution's input that its window covers."""
    x, w = arguments["input"], arguments["weight"]
    part = 1.0
    for axis in range(2):
        size, taps, stride, pad = (
            x.shape[2 + axis],
            w.shape[2 + axis],
            arguments["stride"][axis],
            arguments["padding"][axis],
        )
        points = (size + 2 * pad - taps) // stride + 1
        part *= touched(size, points, taps, stride=stride, base=-pad) / size
    return part


def _batch_norm(arguments: dict[str, Any]) -> dict[str, float]:
    return {"input": 2} if arguments["training"] else {}


def _batch_norm_backward(arguments: dict[str, Any]) -> dict[str, float]:
    return {"grad_out": 2, "input": 2} if arguments["train"] else {}


PASSES: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "native_batch_norm": _batch_norm,
    "native_batch_norm_backward": _batch_norm_backward,
    "max_pool2d_with_indices_backward": lambda _: {"self": 0},
}
"""Operations that read their arguments more or less than once, and how often."""
