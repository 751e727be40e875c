"""Times fused blocks on the CPU, as plain PyTorch, beside eager and Inductor; GPUs have their own suite."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.conftest import Session
from benchmarks.kernel_cases import CASES, CONTENDERS, raced
from benchmarks.race_clock import CLOCK, show
from benchmarks.rows import Row


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.benchmark(timer=CLOCK)
def test_kernel(benchmark: Any, session: Session, case: str, contender: str) -> None:
    """One row of the table."""
    rows = raced(case, session)
    row = next(row for row in rows if row.contender == contender)
    if row not in session.rows:
        session.rows.append(row)
    if row.timing is None:
        pytest.skip(row.skipped or "no time")
    benchmark.group = case
    show(benchmark, row.timing)


def test_kernels_on_a_gpu(benchmark: Any, session: Session) -> None:
    """A skipped row for the kernels on a GPU, which another suite measures."""
    reason = (
        "python -m benchmarks.gpu_suite measures them, in a run of its own"
        if torch.cuda.is_available()
        else "there is no CUDA GPU; python -m benchmarks.gpu_suite measures them on one"
    )
    session.rows.append(
        Row(suite="kernels", case="Triton kernels", contender="fused_kernels", ours=True, skipped=reason)
    )
    pytest.skip(reason)
