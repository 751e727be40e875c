"""Compiling the candidates of many problems in parallel, before the first of them runs.

A search is otherwise mostly waiting: one core compiles while the GPU idles. Triton keeps the results, by the same keys
that the launches then ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from fused_kernels.aot.pool import default_jobs
from fused_kernels.candidates import candidates
from fused_kernels.choice import choosing
from fused_kernels.launch import Launch, _resolve, kernel_function, recording
from fused_kernels.problem import Problem
from fused_kernels.tune.call import call_of
from fused_kernels.tune.search import always


def precompile(problems: Iterable[Problem], *, shared: int, jobs: int | None = None) -> int:
    """Compile for the current GPU all that ``search`` will launch; returns how many launches that were.

    A tile that does not compile is left for the search to find.
    """
    from triton import AsyncCompileMode

    count = 0
    with ThreadPoolExecutor(jobs or default_jobs()) as threads, AsyncCompileMode(threads, ignore_errors=True):
        for launch in launches_of(problems, shared=shared):
            kernel_function(launch.kernel).warmup(
                grid=launch.grid,
                num_warps=launch.tile.warps,
                num_stages=launch.tile.stages,
                enable_fp_fusion=launch.fp_fusion,
                **{name: _resolve(value) for name, value in launch.arguments.items()},
            )
            count += 1
    return count


def launches_of(problems: Iterable[Problem], *, shared: int) -> Iterator[Launch]:
    """Every launch of every candidate, on tensors without values."""
    for problem in problems:
        call = call_of(problem, torch.device("meta"))
        for tile in candidates(problem, shared=shared):
            with choosing(always(tile)), recording() as launches:
                call.launch()
            yield from launches
