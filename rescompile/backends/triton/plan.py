"""``plan.json``: what a Triton engine launches, on which memory, in which order.

A plan has one program for each batch size that it was built for. A program is a list of launches on one arena, whose
offsets are planned; weights, images and logits are memory of their own. An argument is a number or an address, in the
order of the kernel's parameters. The steps say what the launches compute; they are what plain PyTorch executes.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from rescompile.backends.triton.steps import Step
from rescompile.manifest import Precision

FORMAT = 1
"""Version of the plan; raised when a reader of the old one would misunderstand the new one."""
ALIGNMENT = 256
"""Bytes: of everything in the arena and among the weights, as of CUDA's own allocations."""

Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Index = Annotated[int, msgspec.Meta(ge=0, le=2**20)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
DType = Literal["int8", "uint8", "int32", "float16", "float32"]
ITEM_BYTES = {"int8": 1, "uint8": 1, "int32": 4, "float16": 2, "float32": 4}
Kind = Literal["*i8", "*u8", "*i32", "*fp16", "*fp32", "i32", "i64", "fp32"]


class Memory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="arena", tag_field="in"):
    """Bytes of the arena."""

    offset: Size
    bytes: Size


class Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="weights", tag_field="in"):
    """A tensor of ``weights.safetensors``."""

    name: str


class Images(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="images", tag_field="in"):
    """The input."""


class Logits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="logits", tag_field="in"):
    """The output."""


Address = Memory | Stored | Images | Logits
Argument = Whole | float | Memory | Stored | Images | Logits


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="parameter", tag_field="is"):
    """The ``index``-th of a launch's arguments."""

    index: Index


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="constant", tag_field="is"):
    """A value that was compiled in."""

    value: Whole | str | bool | None


class Function(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="function", tag_field="is"):
    """A function or type of ``fused_kernels.kernels`` that was compiled in."""

    name: str


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tuple", tag_field="is"):
    """A tuple."""

    items: tuple[Parameter | Constant | Function, ...]


Source = Parameter | Constant | Function | Group


class Kernel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One compiled kernel."""

    file: str
    """A ``.cubin`` of the engine directory; several kernels may share one."""
    entry: str
    """Its function in there."""
    threads: Annotated[int, msgspec.Meta(ge=32, le=1024, multiple_of=32)]
    """Of a program, along x."""
    shared_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
    """Dynamic shared memory."""
    scratch: Annotated[int, msgspec.Meta(ge=0, le=8)]
    """Null pointers behind the arguments: workspaces that Triton's kernels may ask for, of which these need none."""
    parameters: tuple[Kind, ...]
    function: str
    """``module.function`` of ``fused_kernels.kernels``, for the interpreter."""
    source: dict[str, Source]
    """Every parameter of ``function``, constants included."""


class Launch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kernel launch."""

    step: Index
    """The step that it is part of."""
    kernel: Index
    grid: tuple[
        Count, Annotated[int, msgspec.Meta(ge=1, le=65535)], Annotated[int, msgspec.Meta(ge=1, le=65535)]
    ]
    arguments: tuple[Argument, ...]


class Program(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All launches for one batch size."""

    batch: Count
    arena_bytes: Size
    live_bytes: Size
    """The most that is in use at one time: no arena can be smaller."""
    launches: tuple[Launch, ...]


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Type and shape of a tensor in one piece."""

    dtype: DType
    shape: tuple[Size, ...]

    @property
    def bytes(self) -> int:
        """Of all its elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole engine, but for machine code and weights."""

    format: int
    precision: Precision
    target: str
    triton: str
    """Version of the compiler."""
    image: Tensor
    """One input, without the batch dimension."""
    classes: Count
    steps: tuple[Step, ...]
    kernels: tuple[Kernel, ...]
    programs: tuple[Program, ...]
    """By batch size, smallest first."""
    weights: dict[str, Tensor]

    def program_for(self, count: int) -> Program:
        """The smallest program that takes ``count`` images, or the largest there is."""
        return next((program for program in self.programs if program.batch >= count), self.programs[-1])
