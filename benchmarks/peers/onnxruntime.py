"""ONNX Runtime on the CPU, all optimizations on, with our fp32 graph and with the graph that it quantized itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.artifact_cache import ArtifactCache
from benchmarks.networks import Network
from benchmarks.peers.base import FP32_ALLOWED, INT8_ALLOWED, Call


class Fp32Session:
    """The float graph."""

    name, ours, allowed = "ONNX Runtime fp32", False, FP32_ALLOWED

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Open it."""
        return _session(artifacts.reference(net), threads)


class Int8Session:
    """The graph after ``quantize_static``."""

    name, ours, allowed = "ONNX Runtime int8", False, INT8_ALLOWED

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Quantize and open it."""
        return _session(artifacts.quantized(net, "onnxruntime").path, threads)


def _session(path: Path, threads: int) -> Call:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def call(images: NDArray[Any]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = session.run(None, {"input": images})[0]
        return found

    return call
