"""A visit to a GPU, tried without one: a stub of the CUDA driver, real processes, kills at any moment."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.gpu import engine, visit
from benchmarks.gpu.report import SECTIONS
from benchmarks.gpu.visit import Part, Visit
from rescompile.manifest import GOLDEN, Batch, FileDigest
from rescompile.runtime.golden import golden_bytes
from tests.backends.triton.networks import CLASSES, images
from tests.backends.triton.planned import make_plan, manifest_of

pytest.importorskip("triton", reason="plans are made by the extra triton")
ROOT = Path(__file__).parents[3]
TIMED, BEGUN = " ms\n", "s left"
"""What a finished figure of the engine and a case of the kernels' script leave in the log."""
KILLS = int(os.environ.get("RESCOMPILE_VISIT_KILLS", "3"))
"""Runs to kill; of each four one in the kernels' script, which takes longer, but for the first three."""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda.so.1 that runs nothing."""
    folder = tmp_path_factory.mktemp("stub")
    source = Path(__file__).with_name("stub_cuda.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(folder / "libcuda.so.1"), str(source)]
    subprocess.run(command, check=True, timeout=120)
    return folder


@pytest.fixture(scope="module")
def prebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory of a small network whose golden logits are those that the stub returns."""
    folder = tmp_path_factory.mktemp("engine")
    plan = make_plan(folder, "cifar", "int8", batch=Batch(1, 2, 4))
    manifest = manifest_of(plan)
    files = manifest.files | {GOLDEN: FileDigest("0" * 64, 1)}
    msgspec.structs.replace(manifest, files=files).write(folder)
    logits = np.arange(4 * CLASSES, dtype=np.float32).reshape(4, CLASSES)
    (folder / GOLDEN).write_bytes(golden_bytes(images("cifar", 4), logits))
    (folder / "answers").write_bytes(logits.tobytes())
    return folder


def environment(stub: Path, prebuilt: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    answers = {"STUB_CUDA_ANSWERS": str(prebuilt / "answers")}
    path = os.pathsep.join([str(ROOT), kept.get("PYTHONPATH", "")])
    return kept | answers | {"LD_LIBRARY_PATH": str(stub), "PYTHONPATH": path} | more


def engine_command(prebuilt: Path, output: Path, seconds: float = 0.0) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.engine", str(prebuilt), "--output", str(output)]
    return [*command, "--seconds", str(seconds)]


def run(command: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, **settings
    )


def test_an_engine_runs_through_the_driver(stub: Path, prebuilt: Path, tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    found = environment(stub, prebuilt, STUB_CUDA_COUNTS=str(counts))
    done = run(engine_command(prebuilt, tmp_path / "out.json"), env=found)
    assert done.returncode == 0, done.stdout + done.stderr
    programs = json.loads((tmp_path / "out.json").read_text("utf-8"))["programs"]
    assert [program["batch"] for program in programs] == [1, 2, 4]
    assert all(program["correct"] and program["ms"] > 0 for program in programs)
    calls = dict(line.split() for line in counts.read_text("utf-8").splitlines())
    # each program is launched once plainly and once into its graph, which every call then replays
    assert int(calls["cuLaunchKernel"]) == 2 * sum(program["launches"] for program in programs)
    assert int(calls["cuGraphLaunch"]) >= 3 * 11
    assert calls["cuMemAlloc_v2"] == calls["cuMemFree_v2"]


def test_a_wrong_answer_is_said_and_not_timed(stub: Path, prebuilt: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "answers"
    wrong.write_bytes(np.ones(CLASSES, np.float32).tobytes())
    found = environment(stub, prebuilt, STUB_CUDA_ANSWERS=str(wrong))
    done = run(engine_command(prebuilt, tmp_path / "out.json"), env=found)
    assert done.returncode == 1
    for program in json.loads((tmp_path / "out.json").read_text("utf-8"))["programs"]:
        assert program["correct"] is False
        assert "wrong answers" in program["worst"]
        assert "ms" not in program


def test_an_engine_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        engine.main([str(tmp_path / "none"), "--output", str(tmp_path / "out.json")])
    assert ended.value.code == 1


def test_a_visit_that_is_killed_leaves_every_finished_figure(
    stub: Path, prebuilt: Path, tmp_path: Path
) -> None:
    moments = random.Random(3)
    for index in range(KILLS):
        folder, log = tmp_path / str(index), tmp_path / f"{index}.log"
        command = [sys.executable, "-m", "benchmarks.gpu", "visit", "--slice", "1", "--folder", str(folder)]
        command += ["--engine", str(prebuilt), "--tiny", "--seconds", "120"]
        # the first at any moment, the others when the engine or the kernels' script has figures
        awaited, longest = ("", 0.2) if not index else (BEGUN, 3.0) if index % 4 == 3 else (TIMED, 0.2)
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(stub, prebuilt),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            end = time.monotonic() + 120
            while awaited not in log.read_text("utf-8") and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(moments.uniform(0.0, longest))
            printed = log.read_text("utf-8")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert awaited in printed, printed
        assert_kept(folder, printed)


def assert_kept(folder: Path, printed: str) -> None:
    """Every file is whole, and what was said to be finished is in it."""
    found = {path.name: json.loads(path.read_text("utf-8")) for path in folder.glob("*.json")}
    if timed := printed.count(TIMED):
        assert len(found["engine-1.json"]["programs"]) >= timed, "a figure that was printed is lost"
    begun = re.findall(rf"{BEGUN}  \w+: (.+)", printed)
    if len(begun) > 1:
        report = found["kernels-1.json"]
        names = {entry["name"] for section in SECTIONS for entry in report[section]}
        names |= {entry["name"].partition(": ")[2] for entry in (*report["failed"], *report["skipped"])}
        assert set(begun[:-1]) <= names, "a case ended and its result is lost"


def parts(monkeypatch: pytest.MonkeyPatch, *made: Part) -> None:
    monkeypatch.setattr(Visit, "parts", lambda self: list(made))


def script(code: str, seconds: float = 60.0) -> Part:
    return Part("part", (sys.executable, "-c", code), seconds, "part.json")


def test_what_a_part_comes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = f"open({str(tmp_path / 'part.json')!r}, 'w').write('1')"
    cases = {
        write: ("right", True),
        "pass": ("it measured nothing", False),
        f"{write}; raise SystemExit(1)": ("exit code 1; see part.json", False),
        "raise SystemExit(2)": ("exit code 2; it measured nothing", False),
    }
    for code, (result, right) in cases.items():
        parts(monkeypatch, script(code))
        assert visit.run(Visit(1, tmp_path)) is right
        (entry,) = json.loads((tmp_path / "visit-1.json").read_text("utf-8"))["parts"]
        assert entry["result"] == result


def test_a_part_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts(monkeypatch, script("import time; time.sleep(600)", 0.5), script("pass"))
    assert not visit.run(Visit(2, tmp_path))
    entries = json.loads((tmp_path / "visit-2.json").read_text("utf-8"))["parts"]
    assert [entry["result"] for entry in entries] == [
        "ended after its 0 s; it measured nothing",
        "it measured nothing",
    ]


def test_a_missing_tool_is_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts(monkeypatch, Part("ncu", ("no-such-tool",), 1.0, "ncu.csv", text=True))
    assert not visit.run(Visit(2, tmp_path))
    (entry,) = json.loads((tmp_path / "visit-2.json").read_text("utf-8"))["parts"]
    assert entry["result"] == "no-such-tool cannot be started: No such file or directory"


@pytest.mark.parametrize(("slice_", "seconds"), [(1, 590), (2, 400), (3, 480)])
def test_a_slice_keeps_its_time(slice_: int, seconds: float, tmp_path: Path) -> None:
    made = Visit(slice_, tmp_path, tmp_path / "engine").parts()
    assert sum(part.seconds for part in made) <= seconds - visit.GRACE
    assert len({part.output for part in made}) == len(made)
