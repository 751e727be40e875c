"""Logits of a GPU are compared with the executor's, and calls are timed (no GPU)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import triton_on_gpu
from rescompile.manifest import Batch
from tests.backends.triton.networks import CLASSES, images
from tests.backends.triton.planned import make_plan

pytest.importorskip("triton", reason="plans are made by the extra triton")


@pytest.mark.parametrize(
    ("error", "right"), [(0.0, True), (1e-6, False), (float("nan"), False)], ids=["equal", "off", "NaN"]
)
def test_int8_must_be_equal_to_the_bit(
    error: float, right: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(tmp_path, "cifar", "int8", batch=Batch(1, 1, 2))

    def reference(batch: Any) -> Any:
        return np.ones((len(batch), CLASSES), np.float32)

    def runner(batch: Any) -> Any:
        return reference(batch) + np.float32(error)

    assert triton_on_gpu.check(runner, reference, plan, images("cifar", 4)) is right
    assert capsys.readouterr().out.count("right" if right else "WRONG") == 2


def test_a_latency_is_the_median_of_calls() -> None:
    assert 0 <= triton_on_gpu.latency(lambda batch: None, np.zeros(1), 0.0) < 0.01
