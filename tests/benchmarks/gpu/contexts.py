"""A phase's context on a CPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.context import Context
from benchmarks.gpu.gpu_lock import GpuLock
from benchmarks.gpu.networks import TINY
from benchmarks.gpu.options import Options
from benchmarks.gpu.workloads import Setting

CPU = torch.device("cpu")


def context_for(tmp_path: Path, sent: list[tuple[Any, ...]], **options: Any) -> Context:
    settings = Options("cpu", True, (2,), {}, tmp_path, tmp_path, **options)
    context = Context(
        settings, Setting(CPU, TINY), lambda *message: sent.append(message), GpuLock(tmp_path / "lock"), set()
    )
    context.phase, context.deadline = "kernels", time.monotonic() + 600
    return context
