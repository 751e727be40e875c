"""Our engines, through ``rescompile.load``, and OpenVINO with a model that NNCF quantized."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.artifact_cache import ArtifactCache
from benchmarks.networks import DEEP, Network
from benchmarks.peers.base import FP32_ALLOWED, INT8_ALLOWED, Call, Missing
from rescompile.backends.base import RunOptions
from rescompile.backends.openvino.compile import compile_model
from rescompile.runtime.loading import load


class OurEngine:
    """An engine directory of ours."""

    ours = True

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self.name = f"rescompile {precision}"
        self.allowed = {"int8": INT8_ALLOWED, "fp16": 2e-2, "fp32": FP32_ALLOWED}[precision]

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Load it, hashes and golden answers checked."""
        if self.precision == "fp16" and net.name in DEEP:
            raise Missing("a CPU computes FP16 in FP32; resnet18 and resnet50 have the row")
        directory = artifacts.engine(net, self.precision).path
        return load(directory, options=RunOptions(threads=threads))


class QuantizedByNncf:
    """OpenVINO's own way to INT8."""

    name, ours, allowed = "OpenVINO + NNCF int8", False, INT8_ALLOWED

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Quantize and compile for latency, in f32 as ours: by default CPUs with bfloat16 would round to it."""
        if find_spec("nncf") is None:
            raise Missing("nncf is not installed: pip install 'rescompile[bench]'")
        path = artifacts.quantized(net, "nncf").path
        request = compile_model(path, RunOptions(threads=threads), tuned=False).create_infer_request()

        def call(images: NDArray[Any]) -> NDArray[np.float32]:
            found = request.infer([images], share_inputs=True, share_outputs=True)
            return np.array(found[0], np.float32)

        return call
