"""Judging results by the rules of the kernels' tests.

16-bit and TF32 results may be off by twice what torch's are in the same dtype, int8 by one step (a fused
multiply-add may move the last bit on a GPU), and a second run must give the same bits. Memory is full of NaN before
the first run, so an element that no kernel wrote is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

from benchmarks.gpu.op_case import OpCase

TIMES = 2.0
"""Multiple of torch's own error in the same dtype that is allowed."""
SLACK = 1e-5
"""Error that sums in fp32 may have, whatever torch's error is."""


def distance(result: Tensor, truth: Tensor) -> float:
    """|result - truth| / |truth| in float64; infinite where one is not finite and the other is."""
    a, b = result.detach().double(), truth.detach().double()
    if a.shape != b.shape or not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    difference = float((a - b).nan_to_num(0.0, 0.0, 0.0).norm())
    size = float(b.nan_to_num(0.0, 0.0, 0.0).norm())
    return difference / size if size > 0 else difference


def judged(ours: dict[str, Tensor], torchs: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, Any]:
    """Each result's error beside torch's, and whether all of them are within the rule."""
    rows = {}
    for name, expected in truth.items():
        if ours[name].dtype == torch.int8:
            rows[name] = _int8_row(ours[name], torchs[name])
            continue
        error, allowed = (
            distance(ours[name], expected),
            TIMES * distance(torchs[name], expected) + SLACK,
        )
        rows[name] = {"error": error, "allowed": allowed, "correct": error <= allowed}
    return {"correct": all(row["correct"] for row in rows.values()), "results": rows}


def _int8_row(ours: Tensor, expected: Tensor) -> dict[str, Any]:
    off = (ours.int() - expected.int()).abs()
    worst, exact = off.max().item(), (off == 0).double().mean().item()
    return {"error": worst, "allowed": 1, "exact": exact, "correct": worst <= 1}


def check(case: OpCase) -> dict[str, Any]:
    """Run an operation twice, the first time on poisoned memory, and judge it."""
    with poisoned():
        ours = case.named(case.run())
    again = case.named(case.run())
    repeatable = all(torch.equal(ours[name], again[name]) for name in ours)
    del again
    with cudnn_heuristics():
        torchs, truth = case.torchs(), case.truth()
    verdict = judged(ours, torchs, truth)
    return verdict | {"repeatable": repeatable, "correct": verdict["correct"] and repeatable}


@contextmanager
def poisoned() -> Iterator[None]:
    """Every ``torch.empty`` in this context is full of NaN, or of 127 in int8."""
    was = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)
        deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


@contextmanager
def cudnn_heuristics() -> Iterator[None]:
    """Let cuDNN choose by rule in this context: its own benchmark would spend time on float64 kernels."""
    was = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = was


def worst(verdict: dict[str, Any]) -> str:
    """One line on the result that is furthest off."""
    rows = verdict["results"]
    name = max(rows, key=lambda key: rows[key]["error"] / max(rows[key]["allowed"], 1e-30))
    row = rows[name]
    text = f"{name}: {row['error']:.2e} of {row['allowed']:.2e} allowed"
    if "exact" in row:
        text = f"{name}: off by {row['error']}, {100 * row['exact']:.2f} % exact"
    return text if verdict.get("repeatable", True) else f"{text}; a second run gave other bits"
