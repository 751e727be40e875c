"""Compiling the candidates of many problems in parallel, before the first of them runs.

A search otherwise waits mostly for one core that compiles. The results stay in Triton's cache, under the names by which
launches then look for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import wait

import torch

from fused_kernels.candidates import candidates
from fused_kernels.choice import choosing
from fused_kernels.compiling.pool import CompilePool
from fused_kernels.compiling.variant import variant_of
from fused_kernels.launch import Launch, recording
from fused_kernels.problem import Problem
from fused_kernels.tune.call import call_of
from fused_kernels.tune.search import always


def precompile(problems: Iterable[Problem], capability: int, *, shared: int, jobs: int | None = None) -> int:
    """Compile for GPUs of ``capability`` all that ``search`` will launch; returns how many kernels that were.

    A tile that does not compile is left for the search to find.
    """
    variants = dict.fromkeys(variant_of(launch) for launch in launches_of(problems, shared=shared))
    with CompilePool(jobs) as pool:
        wait([pool.submit(variant, capability) for variant in variants])
    return len(variants)


def launches_of(problems: Iterable[Problem], *, shared: int) -> Iterator[Launch]:
    """Every launch of every candidate, on tensors without values."""
    for problem in problems:
        call = call_of(problem, torch.device("meta"))
        for tile in candidates(problem, shared=shared):
            with choosing(always(tile)), recording() as launches:
                call.launch()
            yield from launches
