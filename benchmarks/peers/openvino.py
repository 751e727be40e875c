"""Our engines, through ``rescompile.load``, and OpenVINO with a model that NNCF quantized.

OpenVINO computes a model of one batch size faster than one that takes any, so both are compiled for the size of a call.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.artifact_cache import ArtifactCache
from benchmarks.networks import DEEP, Network
from benchmarks.peers.base import FP32_ALLOWED, INT8_ALLOWED, Call, Missing
from rescompile.backends.base import RunOptions
from rescompile.backends.openvino.compilation import of_batch
from rescompile.backends.openvino.compile import compile_model, core
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
        return _by_batch(lambda batch: load(directory, options=RunOptions(threads=threads, batch=batch)))


class QuantizedByNncf:
    """OpenVINO's own way to INT8."""

    name, ours, allowed = "OpenVINO + NNCF int8", False, INT8_ALLOWED

    def prepare(self, net: Network, artifacts: ArtifactCache, threads: int) -> Call:
        """Quantize and compile for latency, in f32 as ours: by default CPUs with bfloat16 would round to it."""
        if find_spec("nncf") is None:
            raise Missing("nncf is not installed: pip install 'rescompile[bench]'")
        path = artifacts.quantized(net, "nncf").path

        def compiled(batch: int) -> Call:
            model = of_batch(core().read_model(path), batch)
            request = compile_model(model, RunOptions(threads=threads), tuned=False).create_infer_request()

            def call(images: NDArray[Any]) -> NDArray[np.float32]:
                found = request.infer([images], share_inputs=True, share_outputs=True)
                return np.array(found[0], np.float32)

            return call

        return _by_batch(compiled)


def _by_batch(compiled: Callable[[int], Call]) -> Call:
    """A call that is compiled for each batch size before its first images."""
    made: dict[int, Call] = {}

    def call(images: NDArray[Any]) -> NDArray[np.float32]:
        batch = len(images)
        if batch not in made:
            made[batch] = compiled(batch)
        return made[batch](images)

    return call
