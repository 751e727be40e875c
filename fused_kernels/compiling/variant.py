"""Variants: all that Triton's compiler is given for one launch, exactly as its just-in-time compiler derives it.

Two launches that derive the same variant run the same machine code. Values reach the code in three ways: constants
(constexpr parameters, None, and whole numbers that are 1), types, and whether a number or an address is divisible by
16, which is what makes wide loads possible.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fused_kernels.launch import Functor, Launch, Out, kernel_function

Path = tuple[int, ...]
"""Position of an argument and, within tuples, the positions there."""
Type = str | tuple[Any, ...]
"""``*bf16``, ``i32``, ``constexpr``, or one for each element of a tuple."""

CONSTANT = "constexpr"
_TYPES = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}


@dataclass(frozen=True)
class Variant:
    """One compilation, without its target; hashable, and it can be sent to another process."""

    kernel: str
    """``module.function`` of ``fused_kernels.kernels``."""
    types: tuple[tuple[str, Type], ...]
    """Every parameter in order."""
    constants: tuple[tuple[Path, Any], ...]
    divisible: tuple[Path, ...]
    """Addresses and numbers that are multiples of 16."""
    options: tuple[tuple[str, int], ...]
    """``Tile.options``."""
    fp_fusion: bool

    def constant(self, name: str) -> Any:
        """The value of a constexpr parameter, or None if no constant has this name."""
        names = [parameter for parameter, _ in self.types]
        return dict(self.constants).get((names.index(name),)) if name in names else None


def variant_of(launch: Launch) -> Variant:
    """The variant that is compiled for ``launch``, whose tensors may be on the meta device."""
    parameters = inspect.signature(kernel_function(launch.kernel).fn).parameters.values()
    found = _Found()
    types: list[tuple[str, Type]] = []
    for index, parameter in enumerate(parameters):
        derive = found.constant if "constexpr" in str(parameter.annotation) else found.specialize
        types.append((parameter.name, derive((index,), launch.arguments[parameter.name])))
    constants, divisible, options = found.constants, found.divisible, launch.tile.options.items()
    return Variant(
        launch.kernel, tuple(types), tuple(constants), tuple(divisible), tuple(options), launch.fp_fusion
    )


class _Found:
    """Constants and divisible arguments met so far."""

    def __init__(self) -> None:
        self.constants: list[tuple[Path, Any]] = []
        self.divisible: list[Path] = []

    def constant(self, path: Path, value: Any) -> str:
        self.constants.append((path, value))
        return CONSTANT

    def specialize(self, path: Path, value: Any) -> Type:
        if isinstance(value, tuple):
            return tuple(self.specialize((*path, index), item) for index, item in enumerate(value))
        if isinstance(value, Out):
            value = value.tensor
        if isinstance(value, Tensor):
            return self._divisible_if(aligned(value), path, "*" + _TYPES[value.dtype])
        if value is None or isinstance(value, Functor) or (value == 1 and type(value) is int):
            return self.constant(path, value)
        if isinstance(value, bool | float):
            return "u1" if isinstance(value, bool) else "fp32"
        return self._divisible_if(value % 16 == 0, path, "i32" if -(2**31) <= value < 2**31 else "i64")

    def _divisible_if(self, divisible: bool, path: Path, kind: str) -> str:
        if divisible:
            self.divisible.append(path)
        return kind


def aligned(tensor: Tensor) -> bool:
    """Whether the first element lies at a multiple of 16 bytes, as every allocation does; a view may not."""
    return tensor.storage_offset() * tensor.element_size() % 16 == 0
