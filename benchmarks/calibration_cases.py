"""Times calibrations, each in its own process: ours by effort, and those of NNCF and ONNX Runtime with quantization."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.artifact_cache import CALIBRATION_IMAGES, TIMEOUT, ArtifactCache, Failed
from benchmarks.networks import Network
from benchmarks.rows import Row
from rescompile.measuring.timing import timing

EFFORTS = ("rescompile fast", "rescompile balanced", "NNCF", "ONNX Runtime")
_QUANTIZERS = {"NNCF": "nncf", "ONNX Runtime": "onnxruntime"}


def calibrated(net: Network, artifacts: ArtifactCache, contender: str, case: str) -> Row:
    """Run ``contender`` once.

    Raises:
        Failed: a package is missing, or it refused the network.
    """
    if contender in _QUANTIZERS:
        made = artifacts.quantized(net, _QUANTIZERS[contender])
        seconds, peak, covers = made.seconds, made.peak_rss_bytes, "fp32 graph to quantized graph"
    else:
        seconds = _ours(net, artifacts.folder, contender.removeprefix("rescompile "))
        peak, covers = None, "checkpoint to calibration table"
    return Row(
        suite="calibration",
        case=case,
        contender=contender,
        ours=contender not in _QUANTIZERS,
        weights=net.said,
        timing=timing([[1e3 * seconds]]),
        peak_rss_bytes=peak,
        notes=(covers, f"{CALIBRATION_IMAGES} images", "one run: no interval"),
    )


def _ours(net: Network, folder: Path, effort: str) -> float:
    """Seconds of ``rescompile calibrate``, after a check of the table that it wrote."""
    output = folder / f"{net.name}-{effort}.json"
    command = [sys.executable, "-m", "rescompile", "calibrate", *net.options, "--effort", effort]
    command += ["--calibration-images", str(CALIBRATION_IMAGES), "--output", str(output)]
    command += ["--calibration-set", str(net.calibration_set)] if net.calibration_set else []
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False, timeout=TIMEOUT)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise Failed(done.stderr.decode(errors="replace").strip().splitlines()[-1])
    tensors = json.loads(output.read_text())["tensors"]
    if not tensors or not all(entry["scale"] > 0 for entry in tensors.values()):
        raise Failed(f"WRONG: {output.name} holds no positive scale for each tensor")
    return seconds
