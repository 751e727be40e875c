"""The GPU suite; without a GPU, its parts say why nothing was measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import gpu_engines, gpu_suite
from benchmarks.artifact_cache import ArtifactCache
from benchmarks.gpu_engines import ENTRANTS, OurGpuEngine, TorchHalf
from benchmarks.networks import Network
from benchmarks.peers.base import Missing
from benchmarks.rows import read_results
from rescompile.backends.cuda.devices import Gpu, gpus
from rescompile.measuring.roofline import Roofline
from tests.benchmarks.test_suites import ROOFLINE


def test_both_parts_share_less_than_nine_minutes() -> None:
    made = gpu_suite.parts(gpu_suite.BUDGET_SECONDS, None, tiny=False)
    assert [name for name, _, _ in made] == ["kernels", "engines"]
    assert sum(seconds for _, _, seconds in made) + gpu_suite.GRACE <= 540
    for _, command, seconds in made:
        assert float(command[command.index("--budget-seconds") + 1]) <= seconds


def test_parts_write_where_they_are_told(tmp_path: Path) -> None:
    for name, command, _ in gpu_suite.parts(10, tmp_path, tiny=True):
        assert command[command.index("--output") + 1] == str(tmp_path / f"{name}.json")
        assert "--tiny" in command


def test_a_part_that_fails_or_hangs_is_named_and_the_others_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "GRACE", 0.0)
    python = [sys.executable, "-c"]
    found = gpu_suite.run(
        [
            ("bad", [*python, "raise SystemExit(3)"], 30.0),
            ("hangs", [*python, "import time; time.sleep(30)"], 0.2),
            ("good", [*python, ""], 30.0),
        ]
    )
    assert found == {"bad": "exit code 3", "hangs": "it did not end within its 0 seconds"}


def test_the_exit_code_says_whether_all_parts_ended_well(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for bad, code in (({}, 0), ({"kernels": "exit code 1"}, 1)):
        monkeypatch.setattr(gpu_suite, "run", lambda commands, bad=bad: bad)
        with pytest.raises(SystemExit) as stop:
            gpu_suite.main(["--folder", str(tmp_path / "new")])
        assert stop.value.code == code
    assert "kernels: exit code 1" in capsys.readouterr().err


@pytest.mark.skipif(bool(gpus()), reason="a GPU is here: its suite measures")
def test_without_a_gpu_every_entrant_says_why(tmp_path: Path) -> None:
    net = Network("resnet20-cifar", "random", "", None)
    for entrant in ENTRANTS:
        with pytest.raises(Missing):
            entrant.prepare(net, ArtifactCache(tmp_path), 1)


@pytest.mark.skipif(bool(gpus()), reason="a GPU is here: its suite measures")
def test_engines_write_a_row_for_each_entrant(
    small_engines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.artifact_cache import Artifact

    def engine(self: ArtifactCache, net: Network, precision: str, backend: str = "openvino") -> Artifact:
        return Artifact(small_engines["fp32"], 1.0, 1)

    monkeypatch.setattr(ArtifactCache, "engine", engine)
    monkeypatch.setattr(gpu_engines, "gpu_roofline", lambda: ROOFLINE)
    output = tmp_path / "engines.json"
    with pytest.raises(SystemExit) as stop:
        gpu_engines.main(["--tiny", "--output", str(output)])
    assert stop.value.code == 0
    rows = read_results(output).rows
    assert len(rows) == 2 * len(ENTRANTS)
    assert all(row.skipped for row in rows)


def test_rates_of_a_device_become_a_roofline() -> None:
    found = gpu_engines.gpu_roofline()
    assert isinstance(found, Roofline)
    assert found.bandwidth(1e3) == found.memory_bytes_per_second > 0


def test_a_gpu_is_the_device_of_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_engines, "gpus", lambda: (Gpu("A GPU", "sm_90", "13.0"),))
    found = gpu_engines._origin()
    assert found.device == "A GPU"
    assert "cores" not in found.machine


def test_entrants_have_names_of_their_own() -> None:
    assert len({entrant.name for entrant in ENTRANTS}) == len(ENTRANTS)
    assert OurGpuEngine("triton", "int8").allowed > TorchHalf("eager").allowed
