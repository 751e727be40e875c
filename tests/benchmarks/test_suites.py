"""The machinery of the suites; whole runs need a quiet machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.artifact_cache import Artifact, ArtifactCache, Failed
from benchmarks.engine_races import EngineRaces
from benchmarks.networks import TINY, Budget, Network, OutOfTime, network
from benchmarks.peers import ENTRANTS, Missing
from benchmarks.peers.openvino import OurEngine
from benchmarks.peers.torch import Compiled
from benchmarks.race_clock import CLOCK, show
from benchmarks.rows import read_results
from rescompile.measuring.race import Contender
from rescompile.measuring.roofline import Roofline
from rescompile.measuring.timing import Timing, timing
from tests.measuring.scripted import steady

ROOT = Path(__file__).parents[2]
NET = Network(TINY, "random", "random weights", None)
ROOFLINE = Roofline(
    memory_bytes_per_second=1e10, cache_bytes_per_second=1e11, cache_bytes=2**25,
    float_ops_per_second=1e11, int8_ops_per_second=2e11, threads=1,
)  # fmt: skip


@dataclass
class Entrant:
    """Answers fp32's logits times ``factor``, or raises ``error``."""

    name: str
    factor: float = 1.0
    error: Exception | None = None
    ours: bool = False
    allowed: float = 0.01

    def prepare(self, net: Network, artifacts: Any, threads: int) -> Any:
        if self.error is not None:
            raise self.error
        return lambda images: images[:, 0, 0, :10] * np.float32(self.factor)


@pytest.fixture
def artifacts(small_engines: dict[str, Path]) -> Any:
    """An artifact cache whose engines are made already and whose images are their own logits."""
    images = np.random.default_rng(0).standard_normal((64, 3, 12, 12)).astype(np.float32)
    return SimpleNamespace(
        logits=lambda net: images[:4, 0, 0, :10],
        images=lambda net, count: images[np.arange(count) % 4],
        engine=lambda net, precision: Artifact(small_engines[precision], 1.0, 1),
    )


def races(artifacts: Any, *entrants: Entrant, budget: Budget | None = None) -> EngineRaces:
    return EngineRaces(artifacts, budget or Budget(1), ROOFLINE, 1, 0.01, entrants)


def test_a_race_has_a_row_for_each_entrant_and_a_reason_for_each_absence(artifacts: Any) -> None:
    entrants = (
        Entrant("good int8", ours=True),
        Entrant("absent", error=Missing("not installed")),
        Entrant("broken", error=Failed("no")),
        Entrant("wrong", factor=1.1),
    )
    rows = {row.contender: row for row in races(artifacts, *entrants).rows_of(NET, "latency")}
    assert rows["good int8"].timing is not None
    assert rows["good int8"].relative_rms == 0
    assert rows["good int8"].floor_ms is not None
    assert (rows["absent"].skipped, rows["broken"].skipped) == ("not installed", "no")
    assert rows["wrong"].skipped == "WRONG: relative RMS 0.1 to fp32, allowed 0.01"
    assert rows["wrong"].timing is None


def test_those_close_to_the_best_race_again_without_the_slow(
    artifacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    raced = []

    def recorded(contenders: Mapping[str, Contender], *, seconds: float) -> dict[str, Timing]:
        raced.append(list(contenders))
        return {name: timing([[{"a": 10.0, "b": 14.0, "c": 16.0}[name] / len(raced)]]) for name in contenders}

    monkeypatch.setattr("benchmarks.engine_races.race", recorded)
    rows = races(artifacts, *map(Entrant, "abc")).rows_of(NET, "latency")
    assert raced == [["a", "b", "c"], ["a", "b"]]
    assert [row.timing.p50 for row in rows if row.timing] == [5.0, 7.0, 16.0]


def test_throughput_takes_each_contenders_best_batch(artifacts: Any) -> None:
    (row,) = races(artifacts, Entrant("a")).rows_of(NET, "throughput")
    assert row.timing is not None
    assert row.batch in (1, 4, 16)
    assert row.images_per_second == pytest.approx(1e3 * row.batch / row.timing.p50)


def test_a_race_is_run_once_and_is_refused_when_time_is_up(artifacts: Any) -> None:
    one = races(artifacts, Entrant("a"))
    assert one.rows_of(NET, "latency") is one.rows_of(NET, "latency")
    (row,) = races(artifacts, Entrant("a"), budget=Budget(0)).rows_of(NET, "latency")
    assert "0 minutes" in (row.skipped or "")


def test_a_network_that_cannot_be_built_has_rows_that_say_so(artifacts: Any) -> None:
    def refuse(net: Network) -> None:
        raise Failed("no weights")

    artifacts.logits = refuse
    (row,) = races(artifacts, Entrant("a")).rows_of(NET, "latency")
    assert row.skipped == "its fp32 graph failed: no weights"


def test_a_build_that_takes_too_long_has_rows_that_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.artifact_cache.TIMEOUT", 0.01)
    (row,) = races(ArtifactCache(tmp_path), Entrant("a")).rows_of(NET, "latency")
    assert row.skipped == "its fp32 graph failed: it took longer than 0.01 s"


def test_the_budget_learns_what_a_network_costs() -> None:
    budget = Budget(1)
    budget.claim("resnet152")
    budget.spent("resnet50", 30.0)
    budget.claim("resnet18")
    with pytest.raises(OutOfTime, match="--networks resnet152"):
        budget.claim("resnet152")


def test_networks_take_real_weights_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESCOMPILE_DATA", raising=False)
    assert network("resnet50", tmp_path).options == ["--model", "resnet50", "--weights", "random"]
    tiny = network(TINY, tmp_path)
    assert tiny.calibration_set is not None
    assert tiny.calibration_set.is_file()
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/resnet20-12fca82f.th").write_bytes(b"")
    monkeypatch.setenv("RESCOMPILE_DATA", str(tmp_path))
    assert network(TINY, tmp_path).said == "resnet20-12fca82f.th"
    assert network("resnet101", tmp_path).said == "random weights"


def test_a_packed_checkpoint_is_unpacked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lzma

    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/resnet18-pqf.pth.xz").write_bytes(lzma.compress(b"weights"))
    monkeypatch.setenv("RESCOMPILE_DATA", str(tmp_path))
    found = network("resnet18", tmp_path)
    assert Path(found.weights).read_bytes() == b"weights"
    Path(found.weights).write_bytes(b"kept")
    assert Path(network("resnet18", tmp_path).weights).read_bytes() == b"kept"


def test_what_failed_once_fails_again_without_another_try(tmp_path: Path) -> None:
    artifacts = ArtifactCache(tmp_path)
    bad = Network("resnet20-cifar", str(tmp_path / "none.pth"), "", None)
    with pytest.raises(Failed, match=r"none\.pth") as first:
        artifacts.engine(bad, "fp32")
    with pytest.raises(Failed) as second:
        artifacts.engine(bad, "fp32")
    assert second.value is first.value


def test_inductor_is_left_out_where_it_takes_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = Network("resnet152", "random", "", None)
    with pytest.raises(Missing):
        Compiled().prepare(deep, ArtifactCache(tmp_path), 1)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Missing, match="compiler"):
        Compiled().prepare(NET, ArtifactCache(tmp_path), 1)


def test_entrants_have_names_of_their_own() -> None:
    assert len({entrant.name for entrant in ENTRANTS}) == len(ENTRANTS)


def test_a_replayed_race_takes_what_it_took() -> None:
    class Benchmark:
        def pedantic(self, target: Any, *, rounds: int, iterations: int) -> None:
            began = CLOCK()
            for _ in range(rounds * iterations):
                target()
            self.seconds = CLOCK() - began

    benchmark, found = Benchmark(), steady(10)
    show(benchmark, found)
    assert benchmark.seconds == pytest.approx(sum(found.samples) / 1e3)


def test_a_tiny_run_of_the_suites_writes_rows_and_says_why_others_are_missing(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks",
        "--benchmark-only",
        "--tiny",
        "--threads",
        "1",
        "-q",
    ]
    command += ["--results", str(tmp_path / "r.json"), "--benchmark-json", str(tmp_path / "b.json")]
    command += ["-k", "kernel and (inference or gpu)", "-p", "no:xdist", "-p", "no:cacheprovider"]
    # of its own: inside a worker of xdist, pytest-benchmark would not measure
    shell = {
        name: value
        for name, value in os.environ.items()
        if name != "TRITON_INTERPRET" and not name.startswith("PYTEST_")
    }
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=shell)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_results(tmp_path / "r.json").rows
    timed = [row for row in rows if row.timing is not None]
    assert {row.case for row in timed} == {"basic block inference", "bottleneck inference"}
    assert all(row.timing is not None or row.skipped for row in rows)
    assert "gpu_suite" in next(row.skipped for row in rows if row.case == "Triton kernels")
    shown = {entry["name"] for entry in json.loads((tmp_path / "b.json").read_text())["benchmarks"]}
    assert "test_kernel[bottleneck inference-PyTorch eager]" in shown


def test_deep_networks_race_the_most_telling_contenders(tmp_path: Path) -> None:
    deep = Network("resnet101", "random", "", None)
    with pytest.raises(Missing, match="FP32"):
        OurEngine("fp16").prepare(deep, ArtifactCache(tmp_path), 1)


def test_time_that_deep_networks_do_not_need_is_no_part_of_what_they_cost(
    artifacts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Entrant):
        def prepare(self, net: Network, artifacts: Any, threads: int) -> Any:
            time.sleep(2.0)
            return super().prepare(net, artifacts, threads)

    spent: list[float] = []
    for name in (Compiled.name, "another"):
        budget = Budget(1)
        monkeypatch.setattr(budget, "spent", lambda name, seconds: spent.append(seconds))
        races(artifacts, Slow(name), budget=budget).rows_of(NET, "latency")
    assert spent[0] < spent[1] - 0.5
