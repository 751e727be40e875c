"""A plan's launches in Triton's interpreter: the kernels' own source on the planned memory, on the CPU, for tests.

Everything that a GPU would be given takes part: grids, arguments, the arena with its reuse, the weights as stored. Set
``TRITON_INTERPRET=1`` before anything imports a kernel. Only small images finish: it computes 0.1 to 0.2 GFLOP/s.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fused_kernels.launch import interpreted, kernel_function
from rescompile.backends.triton.plan import (
    Argument,
    Constant,
    Function,
    Images,
    Kernel,
    Launch,
    Memory,
    Parameter,
    Plan,
    Program,
    Stored,
)
from rescompile.backends.triton.weights import read_weights
from rescompile.errors import BackendError

UNWRITTEN = 0x7F
"""What every byte of the arena is before the first launch: 127 in int8, NaN in floating point."""
_TYPES = {
    "*i8": torch.int8,
    "*i32": torch.int32,
    "*u8": torch.uint8,
    "*fp16": torch.float16,
    "*fp32": torch.float32,
}


class Interpreter:
    """A plan with its weights; call it with as many images as one of its programs takes."""

    def __init__(self, directory: Path, plan: Plan) -> None:
        if not interpreted():
            raise BackendError(
                "Triton's interpreter is off; set TRITON_INTERPRET=1 before kernels are imported"
            )
        self.plan = plan
        self._weights = {
            name: torch.from_numpy(values.copy()) for name, values in read_weights(directory, plan).items()
        }

    def __call__(self, images: NDArray[Any]) -> NDArray[np.float32]:
        """Logits [N, classes] of exactly N images, N being the batch of one of the plan's programs."""
        program = next(program for program in self.plan.programs if program.batch == len(images))
        memory = _Memory(self.plan, program, self._weights, images)
        for launch in program.launches:
            kernel = self.plan.kernels[launch.kernel]
            kernel_function(kernel.function)[launch.grid](**_arguments(kernel, launch, memory))
        return memory.logits.numpy()


class _Memory:
    """What addresses mean."""

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
            return self.arena[value.offset : value.offset + value.bytes].view(_TYPES[kind])
        if isinstance(value, Stored):
            return self.weights[value.name].view(_TYPES[kind])
        if isinstance(value, int | float):
            return value
        return self.images if isinstance(value, Images) else self.logits


def _arguments(kernel: Kernel, launch: Launch, memory: _Memory) -> dict[str, Any]:
    def resolved(source: Parameter | Constant | Function) -> Any:
        if isinstance(source, Parameter):
            return memory.at(launch.arguments[source.index], kernel.parameters[source.index])
        return kernel_function(source.name) if isinstance(source, Function) else source.value

    return {
        name: resolved(source)
        if isinstance(source, Parameter | Constant | Function)
        else tuple(resolved(item) for item in source.items)
        for name, source in kernel.source.items()
    }
