"""Compilations and what their machine code shows: registers, spills, instructions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace

from benchmarks.compiled_kernels.sass import Machine, disassemble, registers_of
from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.pool import CompilePool
from fused_kernels.compiling.variant import Variant
from fused_kernels.gpus import Target

CHUNK = 8
"""Kernels that share one run of the disassembler, which takes as long to start as half a compilation."""

Work = Sequence[tuple[Variant, Target]]


@dataclass(frozen=True)
class Compiled:
    """A variant compiled for a target, or why it is not."""

    variant: Variant
    target: str
    error: str | None = None
    registers: int = 0
    """32-bit registers per thread."""
    shared: int = 0
    """Bytes of shared memory per program."""
    tensor_memory: int = 0
    """Columns of a Blackwell GPU's tensor memory per program."""
    machine: Machine = field(default_factory=Machine)
    seconds: float = 0.0


def compile_in_processes(work: Work, jobs: int) -> Iterator[Compiled]:
    """Compile every variant for its target in ``jobs`` processes; results come in the order in which they finish."""
    with CompilePool(jobs) as pool, ThreadPoolExecutor(jobs) as readers:
        futures = {pool.submit(variant, target.capability): (variant, target) for variant, target in work}
        waiting: dict[Target, list[tuple[Compiled, bytes]]] = {}
        reads: list[Future[list[Compiled]]] = []
        for future in as_completed(futures):
            variant, target = futures[future]
            code = future.result()
            if code.error:
                yield Compiled(variant, target.name, error=code.error)
                continue
            chunk = waiting.setdefault(target, [])
            chunk.append((_compiled(variant, target, code), code.cubin))
            if len(chunk) == CHUNK:
                reads.append(readers.submit(read, waiting.pop(target), target))
            while reads and reads[0].done():
                yield from reads.pop(0).result()
        reads += [readers.submit(read, chunk, target) for target, chunk in waiting.items()]
        for done in as_completed(reads):
            yield from done.result()


def _compiled(variant: Variant, target: Target, code: Code) -> Compiled:
    return Compiled(
        variant,
        target.name,
        shared=code.shared_bytes,
        tensor_memory=code.tensor_memory,
        seconds=code.seconds,
    )


def read(chunk: Sequence[tuple[Compiled, bytes]], target: Target) -> list[Compiled]:
    """Add what the machine code shows; one run of the disassembler reads it all."""
    cubins = [cubin for _, cubin in chunk]
    machines = disassemble(cubins, target.capability)
    return [
        replace(compiled, machine=machine, registers=registers_of(cubin))
        for (compiled, cubin), machine in zip(chunk, machines, strict=True)
    ]
