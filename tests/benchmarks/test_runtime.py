"""The soak test and the overhead of the Python runtime, on a tiny engine and for a moment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import end_to_end, runtime_overhead, soak
from rescompile.errors import BackendError
from rescompile.runtime.engine import Engine
from tests.backends.engines import make_engine, manifest
from tests.backends.graphs import CLASSES

Say = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("soaked")
    for backend in ("openvino", "onnxruntime"):
        make_engine(folder / backend, "int8", backend=backend)
    return {backend: folder / backend for backend in ("openvino", "onnxruntime")}


def answer(program: str, *words: object) -> dict[str, Any]:
    """What ``program`` prints in a process of its own: its signals and forks are not for the tests' process."""
    command = [sys.executable, "-X", "faulthandler", "-m", f"benchmarks.{program}", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode in (0, 1), f"exit code {done.returncode}: {done.stderr}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_threads_get_the_same_answers_for_a_while(built: dict[str, Path], backend: str) -> None:
    found = answer("soak", built[backend], "--inferences", 600, "--reloads", 2)
    assert (found["threads"], found["inferences"], found["wrong"], found["failed"]) == (4, 600, 0, 0)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_an_interrupted_engine_answers_as_before(built: dict[str, Path], backend: str) -> None:
    found = answer("interrupts", built[backend], "--interrupts", 300)
    assert (found["interrupts"], found["wrong"]) == (300, 0)


class Odd:
    """A runner whose answer depends on how often it was asked, and which fails at times."""

    def __init__(self, fails: bool) -> None:
        self.calls, self.fails = 0, fails

    def __call__(self, images: Any) -> Any:
        self.calls += 1
        if self.fails and self.calls > soak.IMAGES and self.calls % 10 == 0:
            raise BackendError("now and then")
        value = 0 if self.fails or self.calls <= soak.IMAGES else self.calls
        return np.full((len(images), CLASSES), value, np.float32)

    def close(self) -> None: ...


@pytest.mark.parametrize(("fails", "wrong", "failed"), [(False, 50, 0), (True, 0, 5)])
def test_wrong_and_failed_inferences_are_counted(fails: bool, wrong: int, failed: int) -> None:
    runner = Odd(fails)
    found = soak.soak(lambda: Engine(manifest("fp32", "openvino"), runner), threads=3, inferences=50)
    assert (found.wrong, found.failed, found.inferences) == (wrong, failed, 50)
    assert not found.passed()


def test_growing_memory_fails() -> None:
    flat: dict[str, Any] = {
        "model": "m", "backend": "b", "threads": 1, "inferences": 1, "reloads": 0, "wrong": 0, "failed": 0,
        "seconds": 1.0, "resident_mib": 100.0,
    }  # fmt: skip
    assert soak.SoakResult(**flat, growth_mib=1.0).passed()
    assert not soak.SoakResult(**flat, growth_mib=1.1).passed()


@pytest.mark.parametrize("program", [soak.main, runtime_overhead.main])
def test_wrong_usage_is_said_in_one_sentence(program: Any, tmp_path: Path, capsys: Say) -> None:
    for words, code in (([str(tmp_path)], 1), ([str(tmp_path), "--threads", "0"], 2)):
        with pytest.raises(SystemExit) as stop:
            program(words)
        assert stop.value.code == code
    assert "not an engine directory" in capsys.readouterr().err


def test_overhead_is_a_ratio_of_turns_and_its_bar_decides(built: dict[str, Path], capsys: Say) -> None:
    words = [str(built["openvino"]), "--rounds", "30", "--threads", "1"]
    assert runtime_overhead.main([*words, "--bar", "100000"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["batch"], found["rounds"], found["bar_percent"]) == (1, 30, 100_000)
    assert 0 < found["openvino_us"][0] <= found["openvino_us"][1] <= found["openvino_us"][2]
    assert found["overhead_percent"] > -100
    assert runtime_overhead.main([*words, "--bar", "-100"]) == 1


def test_only_openvino_engines_have_an_overhead_over_openvino(built: dict[str, Path], capsys: Say) -> None:
    with pytest.raises(SystemExit) as stop:
        runtime_overhead.main([str(built["onnxruntime"])])
    assert stop.value.code == 1
    assert "is not an OpenVINO engine" in capsys.readouterr().err


def test_different_logits_stop_the_race() -> None:
    answers = [np.zeros(3, np.float32), np.ones(3, np.float32)]
    with pytest.raises(Exception, match="the logits differ"):
        runtime_overhead._round([lambda: answers[0], lambda: answers[1]], 0)


def test_photographs_a_second_are_measured_in_rounds(
    built: dict[str, Path], tmp_path: Path, capsys: Say
) -> None:
    for name in ("a.png", "b.jpg", "c.png"):
        Image.new("RGB", (40, 32), (20, 120, 200)).save(tmp_path / name)
    words = [str(built["openvino"]), str(tmp_path), "--rounds", "2"]
    assert end_to_end.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    (ours,) = found["loops"].values()
    assert (found["photos"], len(ours["rates"]), ours["ratio"]) == (3, 2, None)
    assert min(ours["rates"]) > 0
    program = tmp_path / "classify-folder"
    program.write_text('#!/bin/sh\nls "$2" | wc -l >> "$0.log"\necho "3 photographs: 30.0 images/s" >&2\n')
    program.chmod(0o755)
    assert end_to_end.main([*words, "--program", str(program)]) == 0
    assert json.loads(capsys.readouterr().out)["loops"]["program"]["rates"] == [30.0, 30.0]
    assert {line.strip() for line in Path(f"{program}.log").read_text().splitlines()} == {"3"}
    program.write_text("#!/bin/sh\necho no engine >&2\nexit 1\n")
    for more in (
        ["--rounds", "0"],
        ["--program", str(program)],
        ["--peer", str(tmp_path / "no.xml")],
    ):
        with pytest.raises(SystemExit) as stop:
            end_to_end.main([*words, *more])
        assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "no.xml does not exist; pass the .xml file" in said
    assert "classify-folder cannot run: no engine" in said
    with pytest.raises(SystemExit):
        end_to_end.main([words[0], str(tmp_path / "nowhere")])
    assert "nowhere cannot be read" in capsys.readouterr().err.splitlines()[-1]
