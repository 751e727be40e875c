"""``plan.json``: what a Triton engine launches, on which memory, in which order.

A plan has one program for each batch size that it was built for: a list of launches on one arena whose offsets are
planned. Weights, images and logits are memory of their own. A launch's arguments are numbers and addresses, in the
order of the kernel's parameters. The steps say what the launches compute; plain PyTorch executes those.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import msgspec

from rescompile.backends.triton.steps import Record, Step
from rescompile.manifest import Precision

FORMAT = 2
"""Version of the plan; raised when a reader of the old one would misunderstand the new one."""
ALIGNMENT = 256
"""Alignment in bytes of tensors in the arena and of packed weights, the same as that of CUDA's allocations."""

Size = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Whole = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Index = Annotated[int, msgspec.Meta(ge=0, le=2**20)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
DType = Literal["int8", "uint8", "int32", "float16", "float32"]
ITEM_BYTES = {"int8": 1, "uint8": 1, "int32": 4, "float16": 2, "float32": 4}
Kind = Literal["*i8", "*u8", "*i32", "*fp16", "*fp32", "i32", "i64", "fp32"]


class Memory(Record, frozen=True, tag="arena", tag_field="in"):
    """A range of the arena."""

    offset: Size
    bytes: Size


class Stored(Record, frozen=True, tag="weights", tag_field="in"):
    """A tensor of ``weights.safetensors``."""

    name: str


class Images(Record, frozen=True, tag="images", tag_field="in"):
    """The input."""


class Logits(Record, frozen=True, tag="logits", tag_field="in"):
    """The output."""


Address = Memory | Stored | Images | Logits
Argument = Whole | float | Memory | Stored | Images | Logits


class Kernel(Record, frozen=True, kw_only=True):
    """One compiled kernel."""

    file: str
    """A ``.cubin`` of the engine directory; several kernels may share one."""
    entry: str
    """Name of its function in the file."""
    threads: Annotated[int, msgspec.Meta(ge=32, le=1024, multiple_of=32)]
    """Threads of one program instance, along x."""
    shared_bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
    """Dynamic shared memory."""
    scratch: Annotated[int, msgspec.Meta(ge=0, le=8)]
    """Null pointers after the arguments: Triton declares workspaces, which these kernels do not use."""
    parameters: tuple[Kind, ...]
    """Kinds of the arguments of a launch, in order."""


class Launch(Record, frozen=True):
    """One kernel launch."""

    step: Index
    """Index of the step that it belongs to."""
    kernel: Index
    grid: tuple[
        Count, Annotated[int, msgspec.Meta(ge=1, le=65535)], Annotated[int, msgspec.Meta(ge=1, le=65535)]
    ]
    arguments: tuple[Argument, ...]


class Program(Record, frozen=True, kw_only=True):
    """All launches for one batch size."""

    batch: Count
    arena_bytes: Size
    live_bytes: Size
    """The most bytes that are in use at one time: no arena can be smaller."""
    launches: tuple[Launch, ...]


class Tensor(Record, frozen=True):
    """Type and shape of a contiguous tensor."""

    dtype: DType
    shape: tuple[Size, ...]

    @property
    def bytes(self) -> int:
        """Size of all elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


class Plan(Record, frozen=True, kw_only=True):
    """The whole engine except machine code and weights."""

    format: int
    precision: Precision
    target: str
    triton: str
    """Version of Triton that compiled it."""
    image: Tensor
    """One image, without the batch dimension."""
    classes: Count
    steps: tuple[Step, ...]
    kernels: tuple[Kernel, ...]
    programs: tuple[Program, ...]
    """By batch size, smallest first."""
    weights: dict[str, Tensor]

    def program_for(self, count: int) -> Program:
        """The smallest program that takes ``count`` images, or the largest there is."""
        return next((program for program in self.programs if program.batch >= count), self.programs[-1])


class KernelOfFormat1(Kernel, frozen=True, kw_only=True):
    """A kernel of format 1, which also named its source for Triton's interpreter."""

    function: str
    source: dict[str, dict[str, object]]


class PlanOfFormat1(Plan, frozen=True, kw_only=True):
    """A plan of format 1; it is executed as one of format 2."""

    kernels: tuple[KernelOfFormat1, ...]


READABLE: dict[int, type[Plan]] = {1: PlanOfFormat1, FORMAT: Plan}
"""Formats that are read."""
