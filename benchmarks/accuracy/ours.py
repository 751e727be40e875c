"""Our engines: ``rescompile build`` as a user runs it, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks.accuracy.checkpoints import Checkpoint
from benchmarks.accuracy.results import Row
from rescompile.report import BuildReport

KINDS = ("fp16", "int8 fast", "int8 balanced", "int8 best")
_QUANTIZING = ("calibrate", "quantize")


def built(checkpoint: Checkpoint, kind: str, folder: Path) -> Row:
    """Build and judge one engine; ``folder`` keeps it, and the fp32 graph beside it."""
    precision, _, effort = kind.partition(" ")
    words = ["build", "--model", checkpoint.model, "--weights", str(checkpoint.unpacked(folder))]
    words += ["--precision", precision, "--backend", "openvino", "--output", str(directory(folder, kind))]
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
        executed_by="openvino",
        calibration_images=checkpoint.calibration_images if effort else 0,
    )
    if not done.stdout:
        lines = done.stderr.strip().splitlines()
        return msgspec.structs.replace(row, skipped=lines[-1] if lines else f"exit code {done.returncode}")
    report = msgspec.json.decode(done.stdout, type=BuildReport)
    stages = [stage for stage in report.stages if stage.name in _QUANTIZING]
    return msgspec.structs.replace(
        row,
        images=report.images,
        top1_reference=report.top1_reference,
        top1=report.top1_engine,
        agreement=report.top1_agreement,
        relative_rms=report.relative_rms,
        seconds=sum(stage.seconds for stage in stages) if effort else None,
        peak_rss_bytes=max(stage.peak_rss_bytes for stage in stages) if effort else None,
    )


def directory(folder: Path, kind: str) -> Path:
    """Where the engine of ``kind`` is."""
    return folder / kind.replace(" ", "-")
