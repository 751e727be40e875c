"""Compiling the kernels of a plan on all cores, without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import as_completed

from fused_kernels.compiling.compiler import Code
from fused_kernels.compiling.pool import CompilePool
from fused_kernels.compiling.variant import Variant
from fused_kernels.gpus import Target
from rescompile.backends.base import Progress
from rescompile.errors import BackendError


def compile_variants(
    variants: Sequence[Variant], target: Target, progress: Progress | None = None
) -> list[Code]:
    """Machine code of ``variants``, in their order. Triton's cache makes a second build quick.

    The code does not name files of this machine, so the same kernels give the same engine everywhere.

    Raises:
        BackendError: a kernel does not compile, or needs more than the target or a plan has.
    """
    with CompilePool(line_info=False) as pool:
        futures = {pool.submit(variant, target.capability): variant for variant in variants}
        for done, future in enumerate(as_completed(futures), start=1):
            _check(future.result(), futures[future], target)
            if progress is not None:
                progress(done, len(variants))
        return [future.result() for future in futures]


def _check(code: Code, variant: Variant, target: Target) -> None:
    error = code.error
    if code.workspace_bytes:
        error = f"it asks for a workspace of {code.workspace_bytes} bytes, which a plan does not give"
    if error:
        raise BackendError(f"Triton cannot compile {variant.kernel} for {target.name}: {error}")
    if code.shared_bytes > target.shared_limit:
        raise BackendError(
            f"{variant.kernel} needs {code.shared_bytes:,} bytes of shared memory, {target.name} has "
            f"{target.shared_limit:,}; please report this network"
        )
