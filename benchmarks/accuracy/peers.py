"""Other quantizers on our fp32 graph and the same calibration images, each executed by the runtime it is made for."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.checkpoints import Checkpoint
from benchmarks.accuracy.results import Row
from calibration.images import open_image_set
from calibration.preprocess import Preprocess, normalize
from rescompile.backends.onnxruntime import reference_session
from rescompile.metrics import ParityMeter
from rescompile.report import Parity

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


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
        """Of the model's file."""
        return ".xml" if self.runtime == "openvino" else ".onnx"


PEERS = (
    Peer("NNCF performance", "nncf", "nncf", "openvino"),
    Peer("NNCF mixed", "nncf-mixed", "nncf", "openvino"),
    Peer("ONNX Runtime min-max", "onnxruntime-minmax", "onnxruntime", "onnxruntime"),
    Peer("ONNX Runtime entropy", "onnxruntime-entropy", "onnxruntime", "onnxruntime"),
    Peer("ONNX Runtime percentile", "onnxruntime-percentile", "onnxruntime", "onnxruntime"),
)


class Judge:
    """The validation set and what fp32 says of it, computed once."""

    def __init__(self, checkpoint: Checkpoint, steps: Preprocess, reference: Path) -> None:
        self.checkpoint, self.steps, self.reference = checkpoint, steps, reference
        run = reference_session(reference, optimize=True)
        self._logits = [run(pixels) for pixels, _ in self._batches()]

    def measure(self, engine: Run) -> Parity:
        """``engine`` against fp32."""
        meter = ParityMeter()
        for (pixels, labels), logits in zip(self._batches(), self._logits, strict=True):
            meter.update(logits, engine(pixels), labels)
        return meter.result(image_source=self.checkpoint.validation.name, image_fingerprint="")

    def _batches(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64] | None]]:
        images = open_image_set(self.checkpoint.validation, limit=None, seed=0)
        for batch in images.batches(self.steps, _batch(self.steps)):
            yield normalize(batch.images, self.steps), batch.labels


def quantized(peer: Peer, judge: Judge, folder: Path) -> Row:
    """Quantize the fp32 graph in ``folder`` and judge what comes of it."""
    checkpoint = judge.checkpoint
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
    images = _calibration_images(checkpoint, judge.steps, folder)
    words = [peer.quantizer, str(judge.reference), str(images), str(output)]
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
    found = judge.measure(_runner(output, peer.runtime))
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


def _batch(steps: Preprocess) -> int:
    """Images at once: many small ones, few large ones."""
    return max(4, 64 * 32 * 32 // steps.crop**2)


def _calibration_images(checkpoint: Checkpoint, steps: Preprocess, folder: Path) -> Path:
    """The images that our engines are calibrated on, preprocessed; the seed of the choice is the same."""
    path = folder / "calibration.npz"
    if not path.is_file():
        chosen = open_image_set(checkpoint.calibration, limit=checkpoint.calibration_images, seed=0)
        batches = [normalize(batch.images, steps) for batch in chosen.batches(steps, _batch(steps))]
        np.savez(path, images=np.concatenate(batches))
    return path


def _runner(model: Path, runtime: str) -> Run:
    """OpenVINO with FP32 where it is not quantized; ONNX Runtime as the file says, nothing fused.

    Fused, ONNX Runtime's INT8 products saturate on CPUs without VNNI, which is no fault of the quantizer's.
    """
    if runtime == "onnxruntime":
        return reference_session(model, optimize=False)
    import openvino as ov

    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(images: NDArray[Any]) -> NDArray[np.float32]:
        return np.array(compiled([images])[0], np.float32)

    return run
