"""The kernel behind each entry of a plan, with the constants that were compiled into it.

A plan says what a GPU needs: machine code, grids and arguments. To run the kernels' source instead, the launches are
recorded again from the plan's own steps; they come in the plan's order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fused_kernels.compiling.variant import CONSTANT, Variant, variant_of
from fused_kernels.gpus import TARGETS
from fused_kernels.launch import Functor, Launch, kernel_function
from rescompile.backends.triton.plan import Plan
from rescompile.backends.triton.planning.assemble import meta_tensor
from rescompile.backends.triton.planning.recording import record


@dataclass(frozen=True)
class KernelSource:
    """One kernel of a plan."""

    variant: Variant
    launch: Launch
    """A launch with the kernel's constants."""

    def run(self, grid: tuple[int, ...], passed: Iterable[Any]) -> None:
        """Run the kernel on the values that a launch of the plan passes."""
        values = iter(passed)

        def resolved(kind: Any, recorded: Any) -> Any:
            if isinstance(kind, tuple):
                return tuple(resolved(k, r) for k, r in zip(kind, recorded, strict=True))
            if kind != CONSTANT:
                return next(values)
            return kernel_function(recorded.name) if isinstance(recorded, Functor) else recorded

        arguments = {name: resolved(kind, self.launch.arguments[name]) for name, kind in self.variant.types}
        kernel_function(self.variant.kernel)[grid](**arguments)


def kernel_sources(plan: Plan) -> dict[int, KernelSource]:
    """Every kernel of ``plan`` by its index."""
    weights = {name: meta_tensor(spec) for name, spec in plan.weights.items()}
    found: dict[int, KernelSource] = {}
    for program in plan.programs:
        limit = TARGETS[plan.target].shared_limit
        made = record(plan.steps, weights, meta_tensor(plan.image), batch=program.batch, shared_limit=limit)
        for launch, recorded in zip(program.launches, made.launches, strict=True):
            assert launch.step == recorded.step
            found.setdefault(launch.kernel, KernelSource(variant_of(recorded.launch), recorded.launch))
    return found
