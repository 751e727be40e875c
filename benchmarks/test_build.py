"""Times whole builds, each in its own process: time and peak memory, also by stage; peers quantize the same graph."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.artifact_cache import CALIBRATION_IMAGES, VALIDATION_IMAGES, Failed
from benchmarks.conftest import Session
from benchmarks.networks import OutOfTime
from benchmarks.race_clock import CLOCK, show
from benchmarks.rows import Row
from rescompile.measuring.timing import timing

MAKERS = {
    "rescompile int8": ("int8", True, "checkpoint to verdict"),
    "rescompile fp32": ("fp32", True, "checkpoint to verdict"),
    "NNCF": ("nncf", False, "fp32 graph to quantized graph"),
    "ONNX Runtime": ("onnxruntime", False, "fp32 graph to quantized graph"),
}
"""Contender to its name in the artifact cache, whether it is ours, and what its time covers."""
IMAGES = f"{CALIBRATION_IMAGES} calibration images, and {VALIDATION_IMAGES} for our verdict"


@pytest.mark.parametrize("contender", list(MAKERS))
@pytest.mark.benchmark(timer=CLOCK)
def test_build(benchmark: Any, session: Session, network_name: str, contender: str) -> None:
    """One row of the table; artifacts of another suite are not built again."""
    what, ours, covers = MAKERS[contender]
    net, artifacts = session.network(network_name), session.artifacts
    common = {
        "suite": "build", "case": f"{net.name} build", "contender": contender, "ours": ours, "weights": net.said,
        "notes": (covers, IMAGES, "one run: no interval"),
    }  # fmt: skip
    known = (net.name, what) in artifacts.built
    try:
        if not known:
            session.budget.claim(net.name)
        made = artifacts.engine(net, what) if ours else artifacts.quantized(net, what)
    except (Failed, OutOfTime) as error:
        session.rows.append(Row(**common, skipped=str(error)))
        pytest.skip(str(error))
    found = timing([[1e3 * made.seconds]])
    session.rows.append(Row(**common, timing=found, peak_rss_bytes=made.peak_rss_bytes, stages=made.stages))
    benchmark.group = f"{net.name} build"
    benchmark.extra_info.update(peak_rss_bytes=made.peak_rss_bytes)
    show(benchmark, found)
