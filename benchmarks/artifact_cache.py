"""Builds the engines and models that the suites time, each once and in its own process."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.networks import Network
from calibration.images import open_image_set
from calibration.images.builtin import builtin_image_set
from calibration.preprocess import normalize
from rescompile.backends.onnxruntime import reference_session
from rescompile.manifest import REFERENCE, read_manifest
from rescompile.report import BuildReport, StageRecord
from rescompile.runtime.golden import read_golden

CALIBRATION_IMAGES = 16
"""Enough for reasonable scales; the speed of an engine does not depend on them."""
VALIDATION_IMAGES = 8
"""Enough to see that an engine works; its accuracy has its own benchmarks."""
TIMEOUT = 900


class Failed(Exception):
    """An artifact could not be built; the message says why, in one line."""


@dataclass(frozen=True)
class Artifact:
    """An engine or model, and what building it took."""

    path: Path
    seconds: float
    peak_rss_bytes: int
    stages: tuple[StageRecord, ...] = ()


@dataclass
class ArtifactCache:
    """A folder of engines and models that were built in this run."""

    folder: Path
    batch_max: int = 32
    built: dict[tuple[str, str], Artifact | Failed] = field(default_factory=dict)

    def engine(self, net: Network, precision: str, backend: str = "openvino") -> Artifact:
        """Our engine directory.

        Raises:
            Failed: it could not be built.
        """
        what = precision if backend == "openvino" else f"{precision}-{backend}"
        return self._once(net, what, lambda: self._build(net, precision, backend))

    def quantized(self, net: Network, quantizer: str) -> Artifact:
        """A peer's quantized model of our fp32 graph.

        Raises:
            Failed: the quantizer is missing or refused the graph.
        """
        return self._once(net, quantizer, lambda: self._quantize(net, quantizer))

    def reference(self, net: Network) -> Path:
        """The fp32 graph."""
        return self.engine(net, "fp32").path / REFERENCE

    def images(self, net: Network, count: int) -> NDArray[np.float32]:
        """Golden images [count, 3, H, W], repeated as needed."""
        directory = self.engine(net, "fp32").path
        images, _ = read_golden(directory, read_manifest(directory))
        return np.ascontiguousarray(images[np.arange(count) % len(images)])

    def logits(self, net: Network) -> NDArray[np.float32]:
        """fp32 logits [4, classes] of the golden images, by ONNX Runtime."""
        return reference_session(self.reference(net), optimize=True)(self.images(net, 4))

    def _once(self, net: Network, what: str, make: Callable[[], Artifact]) -> Artifact:
        key = (net.name, what)
        if key not in self.built:
            try:
                self.built[key] = make()
            except Failed as error:
                self.built[key] = error
        found = self.built[key]
        if isinstance(found, Failed):
            raise found
        return found

    def _build(self, net: Network, precision: str, backend: str) -> Artifact:
        output = self.folder / f"{net.name}-{precision}-{backend}"
        command = ["build", *net.options, "--precision", precision, "--backend", backend, "--json"]
        command += ["--batch", f"1:1:{self.batch_max}", "--output", str(output), "--force"]
        command += ["--validation-images", str(VALIDATION_IMAGES)]
        if precision == "int8":
            # one image in eight is 12 % of agreement, so the limit is on the logits' relative RMS
            command += ["--calibration-images", str(CALIBRATION_IMAGES), "--min-agreement", "0"]
            command += ["--calibration-set", str(net.calibration_set)] if net.calibration_set else []
        began = time.perf_counter()
        said = _run([sys.executable, "-m", "rescompile", *command])
        report = msgspec.json.decode(said, type=BuildReport)
        peak = max(stage.peak_rss_bytes for stage in report.stages)
        return Artifact(output, time.perf_counter() - began, peak, report.stages)

    def _quantize(self, net: Network, quantizer: str) -> Artifact:
        output = self.folder / f"{net.name}-{quantizer}{'.xml' if quantizer == 'nncf' else '.onnx'}"
        data = self.folder / f"{net.name}-calibration.npz"
        if not data.is_file():
            steps = read_manifest(self.engine(net, "fp32").path).preprocess
            chosen = builtin_image_set(CALIBRATION_IMAGES)
            if net.calibration_set is not None:
                chosen = open_image_set(net.calibration_set, limit=CALIBRATION_IMAGES, seed=0)
            pixels = next(chosen.batches(steps, CALIBRATION_IMAGES)).images
            np.savez(data, images=normalize(pixels, steps))
        began = time.perf_counter()
        words = [quantizer, str(self.reference(net)), str(data), str(output)]
        said = _run([sys.executable, "-m", "benchmarks.quantizers", *words])
        found = json.loads(said.splitlines()[-1])
        return Artifact(output, time.perf_counter() - began, found["peak_rss_bytes"])


def _run(command: list[str]) -> bytes:
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, check=False, timeout=TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"it took longer than {TIMEOUT} s") from None
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        raise Failed(words[-1] if words else f"exit code {done.returncode}")
    return done.stdout
