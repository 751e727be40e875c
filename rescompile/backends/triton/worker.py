"""A process that compiles: ``python -m rescompile.backends.triton.worker sm_90``, variants on stdin, results on stdout.

A process of its own, because Triton's compiler holds the interpreter lock and may crash, and because kernels that were
imported for Triton's interpreter cannot be compiled. Both streams carry pickles.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
from typing import NamedTuple

from fused_kernels.aot.targets import TARGETS
from fused_kernels.aot.variant import Variant


class Code(NamedTuple):
    """What became of one variant."""

    cubin: bytes = b""
    entry: str = ""
    threads: int = 0
    """Of a program."""
    shared_bytes: int = 0
    parameters: tuple[str, ...] = ()
    """Of the machine code, in the assembler's words, workspaces included: ``u64``, ``u32``, ``f32``."""
    error: str = ""
    """Why there is no machine code."""


def main() -> None:
    """Compile every variant and write (position, ``Code``) as each is done."""
    os.environ["TRITON_INTERPRET"] = "0"  # before any kernel is imported
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever the compiler prints goes elsewhere
    target = TARGETS[sys.argv[1]]
    work: list[tuple[int, Variant]] = pickle.load(sys.stdin.buffer)
    for position, variant in work:
        # as a plain tuple: run as a program, this module's classes are not those that the reader imports
        pickle.dump((position, tuple(compiled(variant, target.name))), answers)
        answers.flush()


def compiled(variant: Variant, target: str) -> Code:
    """Machine code of ``variant``, from Triton's cache where an earlier build or run left it."""
    from fused_kernels.aot.compiler import compile_variant

    try:
        kernel = compile_variant(variant, TARGETS[target])
    except Exception as error:
        # whatever the compiler raises is the result: the build names kernel and reason
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Code(error=f"{type(error).__name__}: {' '.join(lines)[:300]}")
    metadata = kernel.metadata
    workspace = metadata.global_scratch_size or getattr(metadata, "profile_scratch_size", 0)
    if workspace:
        return Code(error=f"it asks for a workspace of {workspace} bytes, which a plan does not give")
    return Code(
        cubin=kernel.asm["cubin"],
        entry=metadata.name,
        threads=32 * metadata.num_warps,
        shared_bytes=metadata.shared,
        parameters=parameters_of(kernel.asm["ptx"]),
    )


def parameters_of(ptx: str) -> tuple[str, ...]:
    """Types of the parameters that the entry function of ``ptx`` takes."""
    head = re.search(r"\.entry\s+\S+?\((.*?)\)", ptx, flags=re.DOTALL)
    return () if head is None else tuple(re.findall(r"\.param\s+\.(\w+)", head[1]))


if __name__ == "__main__":
    main()
