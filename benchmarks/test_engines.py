"""Times whole networks in turns: latency at batch 1, and throughput at each contender's best batch size."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conftest import Session
from benchmarks.engine_races import MODES, Mode
from benchmarks.peers import ENTRANTS
from benchmarks.race_clock import CLOCK, show


@pytest.mark.parametrize("contender", [entrant.name for entrant in ENTRANTS])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.benchmark(timer=CLOCK)
def test_engine(benchmark: Any, session: Session, network_name: str, mode: Mode, contender: str) -> None:
    """One row of the table."""
    rows = session.races.rows_of(session.network(network_name), mode)
    row = next(row for row in rows if row.contender == contender)
    assert not (row.ours and (row.skipped or "").startswith("WRONG")), row.skipped
    if row.timing is None:
        pytest.skip(row.skipped or "no time")
    benchmark.group = row.case
    benchmark.extra_info.update(batch=row.batch, relative_rms=row.relative_rms)
    show(benchmark, row.timing)
