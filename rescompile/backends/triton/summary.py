"""Cost of a plan: launches, memory and machine code, by batch size."""

from __future__ import annotations

import msgspec

from rescompile.backends.triton.plan import Plan
from rescompile.backends.triton.plan_file import read_plan
from rescompile.engine_files import EngineSource
from rescompile.manifest import Manifest


class ProgramSummary(msgspec.Struct, frozen=True):
    """Cost of one call with up to ``batch`` images."""

    batch: int
    launches: int
    arena_bytes: int
    """Memory of all activations."""
    live_bytes: int
    """The most bytes that are in use at one time: no arena can be smaller."""

    def __str__(self) -> str:
        return (
            f"batch {self.batch}: {self.launches} launches, {self.arena_bytes:,} bytes of activations, "
            f"{self.arena_bytes / max(1, self.live_bytes):.2f} of the largest live set"
        )


class PlanSummary(msgspec.Struct, frozen=True):
    """Cost of a whole plan."""

    cubins: int
    """Files of machine code; several kernels may share one."""
    kernels: int
    weight_bytes: int
    programs: tuple[ProgramSummary, ...]

    def __str__(self) -> str:
        return f"{self.kernels} kernels in {self.cubins} cubins, {self.weight_bytes:,} bytes of weights"


def summarize(plan: Plan) -> PlanSummary:
    """The cost of ``plan``."""
    return PlanSummary(
        cubins=len({kernel.file for kernel in plan.kernels}),
        kernels=len(plan.kernels),
        weight_bytes=sum(spec.bytes for spec in plan.weights.values()),
        programs=tuple(
            ProgramSummary(p.batch, len(p.launches), p.arena_bytes, p.live_bytes) for p in plan.programs
        ),
    )


def summary_of(source: EngineSource, manifest: Manifest) -> PlanSummary | None:
    """The cost of the engine in ``source``; None where its backend has no plan.

    Raises:
        EngineError: the plan is damaged, or belongs to another engine.
    """
    return summarize(read_plan(source, manifest)) if manifest.backend == "triton" else None
