"""One variant for one target: Triton's compiler, ptxas, and what the machine code shows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fused_kernels.aot.sass import Machine, disassemble, registers_of
from fused_kernels.aot.targets import Target
from fused_kernels.aot.variant import Variant, source_of


@dataclass(frozen=True)
class Compiled:
    """A variant compiled for a target, or why it is not."""

    variant: Variant
    target: str
    error: str | None = None
    registers: int = 0
    """32-bit registers a thread."""
    shared: int = 0
    """Bytes of shared memory a program."""
    tensor_memory: int = 0
    """Columns of a Blackwell's tensor memory a program."""
    machine: Machine = field(default_factory=Machine)
    seconds: float = 0.0


def compile_all(variants: Sequence[Variant], target: Target) -> list[Compiled]:
    """Compile some variants; one run of the disassembler reads all their machine code."""
    results = [_compiled(variant, target) for variant in variants]
    machines = iter(disassemble([cubin for _, cubin in results if cubin], target.capability))
    return [
        replace(compiled, machine=next(machines), registers=registers_of(cubin)) if cubin else compiled
        for compiled, cubin in results
    ]


def compile_variant(variant: Variant, target: Target) -> Any:
    """Triton's ``CompiledKernel``: the one that a launch on such a GPU would use, left in Triton's cache for it."""
    import triton
    from triton.backends.compiler import GPUTarget

    return triton.compile(
        source_of(variant),
        target=GPUTarget("cuda", target.capability, 32),
        # fused multiply-add, on by default, is to be off from Triton 3.10 on
        options={
            "num_warps": variant.warps,
            "num_stages": variant.stages,
            "enable_fp_fusion": variant.fp_fusion,
        },
    )


def _compiled(variant: Variant, target: Target) -> tuple[Compiled, bytes | None]:
    started = time.perf_counter()
    try:
        kernel = compile_variant(variant, target)
    except Exception as error:
        # whatever the compiler raises is the result: the report names the variant
        return Compiled(variant, target.name, error=_first_line(error)), None
    compiled = Compiled(
        variant,
        target.name,
        shared=kernel.metadata.shared,
        tensor_memory=getattr(kernel.metadata, "tmem_size", None) or 0,
        seconds=round(time.perf_counter() - started, 3),
    )
    return compiled, kernel.asm["cubin"]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"
