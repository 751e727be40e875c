"""The tiles of long reductions, compared in plain PyTorch with a timer that makes times up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import phase_residency
from benchmarks.gpu.networks import FULL
from benchmarks.gpu.phase_residency import compared, long_reductions, residency
from benchmarks.gpu.report import Report, as_text
from benchmarks.gpu.workloads import Setting
from fused_kernels.gpus import HOPPER
from fused_kernels.operands.geometry import Conv
from fused_kernels.problem import Problem
from fused_kernels.tiles import Tile
from fused_kernels.tune.call import call_of
from tests.benchmarks.gpu.contexts import CPU, context_for

LONG = Problem("dgrad", torch.float16, 1, 3, 3, 16, 32, Conv(1, 1), epilogue="drelu")
TILES = Tile(128, 128, 64, warps=8), Tile(64, 128, 64)


def test_both_tiles_are_checked_and_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phase_residency, "rivals", lambda problem, shared: list(TILES))
    outcome, result = compared(LONG, 3, call_of(LONG, CPU), lambda runs: [2.0, 1.0, 9.0], HOPPER)
    alone, several = TILES
    assert outcome.best == several
    assert result["dropped"] == []
    assert result["ms"] == {"alone": 2.0, "several": 1.0}
    assert result["tiles"] == {"alone": alone.to_json(), "several": several.to_json()}
    report = Report({})
    report.sections["residency"].append({"name": LONG.key, **result})
    assert "1 problems, ms a step: 6.000 with a processor for one program, 3.000 with several" in as_text(
        report
    )
    assert not report.wrong()
    assert report.measured()


def test_a_training_step_has_long_reductions(tmp_path: Path) -> None:
    context = context_for(tmp_path, [])
    context.setting = Setting(CPU, FULL, torch.bfloat16)
    context.options = replace(context.options, batches=(256,))
    found = long_reductions(context)
    # 3x3 of 128, 256 and 512 channels both ways, with and without a stride; dgrad of the widest 1x1
    assert {(problem.kind, problem.conv.r) for problem in found} >= {("fprop", 3), ("dgrad", 3), ("dgrad", 1)}
    assert all(problem.c >= 128 and problem.k >= 128 for problem in found)


def test_without_a_gpu_nothing_is_timed(tmp_path: Path) -> None:
    sent: list[tuple[Any, ...]] = []
    residency(context_for(tmp_path, sent))
    ((kind, _, reason),) = sent
    assert (kind, reason) == ("skipped", "tiles are timed on a GPU, and there is none")
