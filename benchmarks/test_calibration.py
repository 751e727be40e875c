"""Times the calibration of one network by each contender, on the same images."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.artifact_cache import Failed
from benchmarks.calibration_cases import EFFORTS, calibrated
from benchmarks.conftest import Session
from benchmarks.networks import OutOfTime
from benchmarks.race_clock import CLOCK, show
from benchmarks.rows import Row


@pytest.mark.parametrize("contender", EFFORTS)
@pytest.mark.benchmark(timer=CLOCK)
def test_calibration(benchmark: Any, session: Session, contender: str) -> None:
    """One row of the table."""
    net = session.network("resnet20-cifar" if session.tiny else "resnet18")
    case = f"{net.name} calibration"
    try:
        session.budget.claim(net.name)
        row = calibrated(net, session.artifacts, contender, case)
    except (Failed, OutOfTime) as error:
        ours = contender.startswith("rescompile")
        session.rows.append(
            Row(suite="calibration", case=case, contender=contender, ours=ours, skipped=str(error))
        )
        pytest.skip(str(error))
    session.rows.append(row)
    assert row.timing is not None
    benchmark.group = case
    show(benchmark, row.timing)
