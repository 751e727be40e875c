"""Our engines: ``rescompile build`` as a user runs it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx

from benchmarks.accuracy.checkpoints import Checkpoint
from benchmarks.accuracy.fp32_comparison import Fp32Comparison, Run
from benchmarks.accuracy.results import Row
from rescompile.backends.openvino.runner import simulate
from rescompile.manifest import GRAPH, Batch
from rescompile.report import BuildReport, Parity
from rescompile.runtime.integrity import read_engine
from rescompile.runtime.loading import simulate as simulate_engine

TARGET = "sm_89"

_FOR = " for "
_BACKENDS = {"": "openvino", "TensorRT": "tensorrt-rtx", "Triton": "triton"}
FIRST = "fp16"
"""The engine whose directory has the fp32 graph that all contenders are compared with."""
KINDS = (
    FIRST,
    "int8 fast",
    "int8 balanced",
    "int8 best",
    f"int8 balanced{_FOR}TensorRT",
    f"int8 best{_FOR}TensorRT",
    f"int8 balanced{_FOR}Triton",
    f"int8 best{_FOR}Triton",
)
_QUANTIZING = ("calibrate", "quantize")


def built(checkpoint: Checkpoint, kind: str, folder: Path, comparison: Callable[[], Fp32Comparison]) -> Row:
    """Build one engine in ``folder`` and compare it with fp32.

    No GPU is used: OpenVINO executes the graph of an engine for TensorRT (built by TensorRT-RTX), and plain PyTorch
    executes the plan of a Triton engine.
    """
    numbers, _, whom = kind.partition(_FOR)
    precision, _, effort = numbers.partition(" ")
    backend = [_BACKENDS[whom], *(["--target", TARGET] if whom else [])]
    words = ["build", "--model", checkpoint.model, "--weights", str(checkpoint.unpacked(folder))]
    words += ["--precision", precision, "--output", str(directory(folder, kind)), "--backend", *backend]
    words += ["--validation-set", str(checkpoint.validation), "--validate", "all", "--force", "--json"]
    if effort:
        words += ["--effort", effort, "--calibration-set", str(checkpoint.calibration)]
        words += ["--calibration-images", str(checkpoint.calibration_images)]
        words += [] if whom else ["--cpu-form", "avx2"]  # the same figures on every machine
    done = subprocess.run(
        [sys.executable, "-m", "rescompile", *words], capture_output=True, check=False, text=True
    )
    row = Row(
        network=checkpoint.model,
        weights=checkpoint.file.name,
        contender=f"rescompile {kind}",
        ours=True,
        executed_by="plan in PyTorch" if whom == "Triton" else "openvino",
        calibration_images=checkpoint.calibration_images if effort else 0,
    )
    if not done.stdout:
        lines = done.stderr.strip().splitlines()
        return msgspec.structs.replace(row, skipped=lines[-1] if lines else f"exit code {done.returncode}")
    report = msgspec.json.decode(done.stdout, type=BuildReport)
    stages = [stage for stage in report.stages if stage.name in _QUANTIZING]
    found: Parity | BuildReport = report
    if whom:
        # its own verdict is about few images, and keeps a failed engine under another name
        found = comparison().measure(_executed(Path(report.engine_directory), whom))
    return msgspec.structs.replace(
        row,
        images=found.images,
        top1_reference=found.top1_reference,
        top1=found.top1_engine,
        agreement=found.top1_agreement,
        relative_rms=found.relative_rms,
        seconds=sum(stage.seconds for stage in stages) if effort else None,
        peak_rss_bytes=max(stage.peak_rss_bytes for stage in stages) if effort else None,
    )


def _executed(engine: Path, whom: str) -> Run:
    if whom == "Triton":
        plan = simulate_engine(read_engine(engine))
        assert plan is not None, "the backend triton simulates"
        return plan
    return simulate(onnx.load(engine / GRAPH), Batch(1, 1, 64))


def directory(folder: Path, kind: str) -> Path:
    """Where the engine of ``kind`` is."""
    return folder / kind.replace(" ", "-")
