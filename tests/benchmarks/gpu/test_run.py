"""The GPU benchmark without a GPU: whole runs on a tiny network, and the report that they write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_kernels
from benchmarks.gpu.report import Report, as_text, bars_for

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu_kernels.py"
ROUND = {"median", "min", "p10", "p90", "rounds"}


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT.parent,
        env=clean | environment,
        check=False,
    )


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    output = tmp_path_factory.mktemp("gpu") / "out.json"
    done = run_script(
        "--device", "cpu", "--tiny", "--batch", "2", "--budget-seconds", "150", "--output", str(output)
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(output.read_text("utf-8")), done.stdout


@pytest.mark.slow
def test_a_whole_run_writes_every_section(whole_run: tuple[dict[str, Any], str]) -> None:
    document, _ = whole_run
    assert document["schema"] == 1
    assert document["environment"]["device"] == "cpu"
    assert {"commit", "date", "torch", "triton", "device_name"} <= document["environment"].keys()
    assert {"copy_gb_per_s", "bf16_tflop_per_s", "int8_top_per_s"} <= document["ceilings"].keys()
    assert [phase["name"] for phase in document["phases"]] == list(gpu_kernels.SHARES)
    assert document["wrong"] == document["failed"] == []
    assert len(document["correctness"]) > 80
    assert len(document["flattened_loop"]) == 12


@pytest.mark.slow
def test_every_case_has_times_peers_and_ratios(whole_run: tuple[dict[str, Any], str]) -> None:
    document, _ = whole_run
    names = {case["name"] for case in document["cases"]}
    assert {
        "train-b2",
        "infer-b1",
        "int8-b2",
        "block layer1.1 backward b2",
        "stem wgrad bfloat16 b2",
    } <= names
    for case in document["cases"]:
        assert case["correct"] is True, case["name"]
        assert case["ratio"].keys() <= case["peers"].keys()
        if "derived" not in str(case["notes"]):
            assert case["ours_ms"].keys() == ROUND, case["name"]
            assert all(peer.keys() == ROUND for peer in case["peers"].values())


@pytest.mark.slow
def test_a_cpu_gives_no_figure_that_a_gpu_should(whole_run: tuple[dict[str, Any], str]) -> None:
    document, printed = whole_run
    assert all(bar["measured"] is None and bar["passed"] is None for bar in document["bars"])
    assert not any("torch.compile" in case["peers"] for case in document["cases"])
    reasons = {entry["name"]: entry["reason"] for entry in document["skipped"]}
    assert reasons["network: infer-b2: torch.compile"] == "there is nothing to compile for on a CPU"
    assert printed.count("not measured") == 3


@pytest.mark.slow
def test_kernels_are_checked_in_the_interpreter(tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    done = run_script(
        "--device", "cpu", "--tiny", "--batch", "2", "--phases", "correctness", "--only", "*layer1.0.conv[13] *",
        "--output", str(output), TRITON_INTERPRET="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = json.loads(output.read_text("utf-8"))["correctness"]
    assert {"layer1.0.conv1 fprop float16", "layer1.0.conv3 inference int8"} <= {r["name"] for r in results}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--phases", "speed"], "--phases speed: choose from residency, correctness, tune"),
        (["--device", "cpu", "--batch", "1"], "batch norm trains on two images or more"),
    ],
)
def test_wrong_usage_is_said_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        gpu_kernels.main(arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(("ratio", "passed"), [(1.2, True), (1.1, False)])
def test_bars_say_asked_measured_and_passed(ratio: float, passed: bool) -> None:
    report = Report({}, {"device": "cuda"}, bars=bars_for(256, 128))
    case = {
        "name": "train-b256",
        "correct": True,
        "ratio": {"torch.compile": ratio},
        "peers": {},
        "notes": [],
    }
    report.sections["cases"].append(case | {"ours_ms": {"median": 30.0}})
    first, *others = report.judged_bars()
    assert (first["asked"], first["measured"], first["passed"]) == (1.15, ratio, passed)
    assert all(bar["passed"] is None for bar in others)
    assert ("passed" in as_text(report)) is passed


NEEDED_ALONE = """
import runpy, sys
for package in ("msgspec", "onnx", "onnxruntime", "openvino", "PIL", "pycuda", "rich", "safetensors", "typer"):
    sys.modules[package] = None
sys.argv = ["gpu_kernels.py", "--help"]
runpy.run_path("benchmarks/gpu_kernels.py", run_name="__main__")
"""


def test_torch_triton_and_numpy_are_all_that_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NEEDED_ALONE], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--budget-seconds" in done.stdout
