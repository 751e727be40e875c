"""Profile of a TensorRT engine: the time of each layer, from an IProfiler."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends import get_backend
from rescompile.backends.profiling import WARM_RUNS, Kind, LayerTime
from rescompile.backends.tensorrt.inspector import onnx_names
from rescompile.engine_files import EngineSource
from rescompile.manifest import Manifest

_REFORMATS = ("Reformatting CopyNode", "Reformat", "CopyNode", "shuffle", "Cast")
_POOLS = re.compile(r"(max|avg)pool", re.IGNORECASE)
_WEIGHTED = re.compile(r"\b(conv\d*|downsample|fc)\b")


class TensorRtProfiler:
    """An engine whose layers are timed; for one thread. It raises what loading the engine raises."""

    def __init__(
        self, source: EngineSource, manifest: Manifest, *, module: str, threads: int | None = None
    ) -> None:
        del threads  # a GPU has none
        backend: Any = get_backend(module.replace("_", "-"))
        self._runner: Any = backend.load(source, manifest)
        self._times = make_profiler(backend.library())
        self._runner.attach(self._times)

    def __call__(
        self, images: NDArray[np.generic], runs: int
    ) -> tuple[NDArray[np.float32], tuple[LayerTime, ...]]:
        """Logits [N, classes] of ``images`` [N, ...], and each layer's mean time over ``runs`` in TensorRT's order."""
        for _ in range(WARM_RUNS):
            self._runner(images)
        self._times.layers.clear()
        for _ in range(runs):
            logits: NDArray[np.float32] = self._runner(images)
        totals: dict[str, float] = {}
        for name, ms in self._times.layers:
            totals[name] = totals.get(name, 0.0) + ms
        return logits, tuple(_layer(name, total / runs) for name, total in totals.items())

    def close(self) -> None:
        """Free the engine; calling it twice is harmless."""
        self._runner.close()


def make_profiler(trt: Any) -> Any:
    """An IProfiler that collects ``layers``: pairs of name and milliseconds."""

    class Times(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.layers.append((layer_name, ms))

    return Times()


def _layer(name: str, ms: float) -> LayerTime:
    origins = tuple(sorted(onnx_names({"Name": re.sub(r"^Reformatting CopyNode for .*? to ", "", name)})))
    return LayerTime(name=name, origins=origins, kind=_kind(name), implementation="", precision="", ms=ms)


def _kind(name: str) -> Kind:
    if name.startswith(_REFORMATS):
        return "reformat"
    if _WEIGHTED.search(name):
        return "weighted"
    if _POOLS.search(name):
        return "pool"
    if "quantize" in name.lower():
        return "quantize"
    return "elementwise" if re.search(r"\.(add|relu\d*)\b", name) else "other"


full = partial(TensorRtProfiler, module="tensorrt")
rtx = partial(TensorRtProfiler, module="tensorrt_rtx")
