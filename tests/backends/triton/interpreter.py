"""A plan's launches in Triton's interpreter: the kernels' own source on the planned memory, on the CPU.

Everything that a GPU would be given takes part: grids, arguments, the arena with its reuse, the weights as stored. Only
small images finish: it computes 0.1 to 0.2 GFLOP/s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fused_kernels.launch import interpreted
from rescompile.backends.triton.plan import Argument, Images, Memory, Plan, Program, Stored
from rescompile.backends.triton.weights import read_weights
from tests.backends.triton.kernel_sources import kernel_sources

UNWRITTEN = 0x7F
"""Value of every byte of the arena before the first launch: 127 in int8, NaN in floating point."""
TYPES = {
    "*i8": torch.int8,
    "*i32": torch.int32,
    "*u8": torch.uint8,
    "*fp16": torch.float16,
    "*fp32": torch.float32,
}
"""Element types of the addresses that a kernel takes."""


class Interpreter:
    """A plan with its weights; call it with as many images as one of its programs takes."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        assert interpreted(), "set TRITON_INTERPRET=1 before kernels are imported"
        self.plan, self._sources = plan, kernel_sources(plan)
        self._weights = {
            name: torch.from_numpy(values.copy()) for name, values in read_weights(directory, plan).items()
        }

    def __call__(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Logits [N, classes] of exactly N images, N being the batch of one of the plan's programs."""
        program = next(program for program in self.plan.programs if program.batch == len(images))
        memory = _Memory(self.plan, program, self._weights, images)
        for launch in program.launches:
            kinds = self.plan.kernels[launch.kernel].parameters
            passed = (memory.at(value, kind) for value, kind in zip(launch.arguments, kinds, strict=True))
            self._sources[launch.kernel].run(launch.grid, passed)
        return memory.logits.numpy()


class _Memory:
    """Tensors behind the addresses of a program."""

    def __init__(
        self, plan: Plan, program: Program, weights: dict[str, Tensor], images: NDArray[Any]
    ) -> None:
        self.arena = torch.full((program.arena_bytes,), UNWRITTEN, dtype=torch.uint8)
        self.images = torch.from_numpy(np.ascontiguousarray(images))
        self.logits = torch.full((program.batch, plan.classes), float("nan"))
        self.weights = weights

    def at(self, value: Argument, kind: str) -> Tensor | int | float:
        """One argument as the interpreter takes it."""
        if isinstance(value, Memory):
            return self.arena[value.offset : value.offset + value.bytes].view(TYPES[kind])
        if isinstance(value, Stored):
            return self.weights[value.name].view(TYPES[kind])
        if isinstance(value, int | float):
            return value
        return self.images if isinstance(value, Images) else self.logits
