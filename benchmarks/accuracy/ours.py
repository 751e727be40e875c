"""Our engines: ``rescompile build`` as a user runs it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import onnx

from benchmarks.accuracy.checkpoints import Checkpoint
from benchmarks.accuracy.judge import Judge, Run
from benchmarks.accuracy.results import Row
from rescompile.backends.openvino.runner import simulate
from rescompile.manifest import GRAPH, Batch
from rescompile.report import BuildReport, Parity
from rescompile.runtime.loading import simulate as simulate_engine

TARGET = "sm_89"

_FOR = " for "
_BACKENDS = {"": "openvino", "TensorRT": "tensorrt-rtx", "Triton": "triton"}
FIRST = "fp16"
"""Whose directory has the fp32 graph that all are judged by."""
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


def built(checkpoint: Checkpoint, kind: str, folder: Path, judge: Callable[[], Judge]) -> Row:
    """Build and judge one engine; ``folder`` keeps it, and the fp32 graph beside it.

    No GPU takes part: of an engine for TensorRT, built by TensorRT-RTX, ``judge`` lets OpenVINO execute the graph, of a
    Triton engine plain PyTorch its plan.
    """
    numbers, _, whom = kind.partition(_FOR)
    precision, _, effort = numbers.partition(" ")
    backend = [_BACKENDS[whom], *(["--target", TARGET] if whom else [])]
    words = ["build", "--model", checkpoint.model, "--weights", str(checkpoint.unpacked(folder))]
    words += ["--precision", precision, "--output", str(directory(folder, kind)), "--backend", *backend]
    words += ["--validation-set", str(checkpoint.validation), "--force", "--json"]
    if effort:
        words += ["--effort", effort, "--calibration-set", str(checkpoint.calibration)]
        words += ["--calibration-images", str(checkpoint.calibration_images)]
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
    found: Parity = report
    if whom:
        # its own verdict is about few images, and keeps a failed engine under another name
        found = judge().measure(_executed(Path(report.engine_directory), whom))
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
        plan = simulate_engine(engine)
        assert plan is not None, "the backend triton simulates"
        return plan
    return simulate(onnx.load(engine / GRAPH), Batch(1, 1, 64))


def directory(folder: Path, kind: str) -> Path:
    """Where the engine of ``kind`` is."""
    return folder / kind.replace(" ", "-")
