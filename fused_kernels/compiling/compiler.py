"""One variant compiled to machine code for one kind of GPU."""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

from fused_kernels.compiling.variant import CONSTANT, Path, Type, Variant
from fused_kernels.launch import Functor, kernel_function


class Code(NamedTuple):
    """The machine code of one variant, or why there is none."""

    cubin: bytes = b""
    entry: str = ""
    threads: int = 0
    """Threads per program."""
    shared_bytes: int = 0
    """Shared memory per program."""
    parameters: tuple[str, ...] = ()
    """Types that the machine code takes, in the assembler's words, workspaces included: ``u64``, ``u32``, ``f32``."""
    workspace_bytes: int = 0
    """Global memory that the kernel asks for beside its arguments."""
    tensor_memory: int = 0
    """Columns of a Blackwell GPU's tensor memory per program."""
    seconds: float = 0.0
    error: str = ""


def compile_variant(variant: Variant, capability: int) -> Code:
    """Compile ``variant`` for GPUs of ``capability`` (90 is 9.0).

    The result stays in Triton's cache, where later builds and launches on such a GPU find it. Never raises: whatever
    the compiler raises becomes ``Code.error``.
    """
    started = time.perf_counter()
    try:
        kernel = triton_kernel(variant, capability)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Code(error=f"{type(error).__name__}: {' '.join(lines)[:300]}")
    metadata = kernel.metadata
    return Code(
        cubin=kernel.asm["cubin"],
        entry=metadata.name,
        threads=32 * metadata.num_warps,
        shared_bytes=metadata.shared,
        parameters=parameters_of(kernel.asm["ptx"]),
        workspace_bytes=metadata.global_scratch_size or getattr(metadata, "profile_scratch_size", 0),
        tensor_memory=getattr(metadata, "tmem_size", None) or 0,
        seconds=round(time.perf_counter() - started, 3),
    )


def triton_kernel(variant: Variant, capability: int) -> Any:
    """Triton's ``CompiledKernel``, from its cache if possible. Triton's interpreter must be off."""
    import triton
    from triton.backends.compiler import GPUTarget

    return triton.compile(
        source_of(variant), target=GPUTarget("cuda", capability, 32), options=options_of(variant)
    )


def options_of(variant: Variant) -> dict[str, int]:
    """The compiler's options, with the same names as a launch's."""
    # fused multiply-add is always set: it is on by default, and is to be off from Triton 3.10 on
    return {**dict(variant.options), "enable_fp_fusion": variant.fp_fusion}


def source_of(variant: Variant) -> Any:
    """The ``triton.compiler.ASTSource`` of a variant, with the same hash as that of a launch."""
    from triton.compiler import ASTSource

    constants = {
        path: kernel_function(value.name) if isinstance(value, Functor) else value
        for path, value in variant.constants
    }
    kernel, types = kernel_function(variant.kernel), dict(variant.types)
    return ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=_attributes(variant))


def _attributes(variant: Variant) -> dict[Path, list[list[Any]]]:
    """The attributes that Triton's launcher gives each address, whole number and string: divisible by 16, or none.

    From Triton 3.7 on it gives constants an empty list too, but for those in tuples. The empty lists change no code,
    but they are part of the name in Triton's cache.
    """
    constants, divisible = dict(variant.constants), set(variant.divisible)
    lists_constants = _lists_constants()
    found: dict[Path, list[list[Any]]] = {}

    def note(path: Path, kind: Type) -> None:
        if isinstance(kind, tuple):
            for index, item in enumerate(kind):
                note((*path, index), item)
        elif kind == CONSTANT:
            if isinstance(constants[path], str) or (lists_constants and len(path) == 1):
                found[path] = []
        elif kind[0] in "*i":
            found[path] = [["tt.divisibility", 16]] if path in divisible else []

    for index, (_, kind) in enumerate(variant.types):
        note((index,), kind)
    return found


def _lists_constants() -> bool:
    import triton

    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (3, 7)


def parameters_of(ptx: str) -> tuple[str, ...]:
    """Types of the parameters that the entry function of ``ptx`` takes."""
    head = re.search(r"\.entry\s+\S+?\((.*?)\)", ptx, flags=re.DOTALL)
    return () if head is None else tuple(re.findall(r"\.param\s+\.(\w+)", head[1]))
