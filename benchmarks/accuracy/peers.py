"""Other quantizers on our fp32 graph and the same calibration images, each executed by the runtime it is made for."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.checkpoints import Checkpoint
from benchmarks.accuracy.fp32_comparison import Fp32Comparison, Run, batch_size
from benchmarks.accuracy.results import Row
from calibration.images import open_image_set
from calibration.preprocess import Preprocess, normalize
from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.openvino.compile import compile_model


@dataclass(frozen=True)
class Peer:
    """One way to quantize."""

    name: str
    quantizer: str
    """In ``benchmarks.quantizers``."""
    package: str
    runtime: str

    @property
    def suffix(self) -> str:
        """Suffix of the model's file."""
        return ".xml" if self.runtime == "openvino" else ".onnx"


PEERS = (
    Peer("NNCF performance", "nncf", "nncf", "openvino"),
    Peer("NNCF mixed", "nncf-mixed", "nncf", "openvino"),
    Peer("ONNX Runtime min-max", "onnxruntime-minmax", "onnxruntime", "onnxruntime"),
    Peer("ONNX Runtime entropy", "onnxruntime-entropy", "onnxruntime", "onnxruntime"),
    Peer("ONNX Runtime percentile", "onnxruntime-percentile", "onnxruntime", "onnxruntime"),
)


def quantized(peer: Peer, comparison: Fp32Comparison, folder: Path) -> Row:
    """Quantize the fp32 graph in ``folder`` and compare the result with fp32."""
    checkpoint = comparison.checkpoint
    row = Row(
        network=checkpoint.model,
        weights=checkpoint.file.name,
        contender=peer.name,
        ours=False,
        executed_by=peer.runtime,
        calibration_images=checkpoint.calibration_images,
    )
    if find_spec(peer.package) is None:
        reason = f"{peer.package} is not installed: pip install 'rescompile[bench]'"
        return msgspec.structs.replace(row, skipped=reason)
    output = folder / f"{peer.quantizer}{peer.suffix}"
    images = _calibration_images(checkpoint, comparison.steps, folder)
    words = [peer.quantizer, str(comparison.reference), str(images), str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.quantizers", *words],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return msgspec.structs.replace(row, skipped=lines[-1] if lines else f"exit code {done.returncode}")
    made = json.loads(done.stdout.splitlines()[-1])
    found = comparison.measure(_runner(output, peer.runtime))
    return msgspec.structs.replace(
        row,
        images=found.images,
        top1_reference=found.top1_reference,
        top1=found.top1_engine,
        agreement=found.top1_agreement,
        relative_rms=found.relative_rms,
        seconds=made["seconds"],
        peak_rss_bytes=made["peak_rss_bytes"],
    )


def _calibration_images(checkpoint: Checkpoint, steps: Preprocess, folder: Path) -> Path:
    """The images that our engines are calibrated on, preprocessed; the seed of the choice is the same."""
    path = folder / "calibration.npz"
    if not path.is_file():
        chosen = open_image_set(checkpoint.calibration, limit=checkpoint.calibration_images, seed=0)
        batches = [normalize(batch.images, steps) for batch in chosen.batches(steps, batch_size(steps))]
        np.savez(path, images=np.concatenate(batches))
    return path


def _runner(model: Path, runtime: str) -> Run:
    """OpenVINO with FP32 where it is not quantized; ONNX Runtime as the file says, nothing fused.

    Fused, ONNX Runtime's INT8 products saturate on CPUs without VNNI, which is not the quantizer's fault.
    """
    if runtime == "onnxruntime":
        return reference_session(model, optimize=False)
    compiled = compile_model(model, tuned=False)

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        return np.array(compiled([images])[0], np.float32)

    return run
