"""Profile of an OpenVINO engine: the time of each layer, from its performance counters."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.base import RunOptions
from rescompile.backends.openvino.compilation import fixed_batch, of_batch
from rescompile.backends.openvino.compile import compile_model, translate_errors
from rescompile.backends.openvino.executable import executable
from rescompile.backends.profiling import WARM_RUNS, Kind, LayerTime
from rescompile.engine_files import EngineSource, files_in
from rescompile.manifest import OPENVINO_MODEL, Manifest

_KINDS: dict[str, Kind] = {
    "Convolution": "weighted",
    "FullyConnected": "weighted",
    "MatMul": "weighted",
    "Reorder": "reformat",
    "Convert": "reformat",
    "Concatenation": "reformat",
    "Concat": "reformat",
    "Transpose": "reformat",
    "Reshape": "reformat",
    "FakeQuantize": "quantize",
    "Eltwise": "elementwise",
    "Pooling": "pool",
    "Reduce": "pool",
}
"""Layer type of the compiled model to kind."""


class OpenVinoProfiler:
    """An engine compiled with counters, which take a little time themselves; for one thread.

    It is compiled as ``rescompile.load`` would: for one batch size, if the images are as many as that.

    Raises:
        BackendError: OpenVINO refuses the payload; its message is included.
    """

    def __init__(self, source: EngineSource, manifest: Manifest, *, threads: int | None = None) -> None:
        path = files_in(source).path(OPENVINO_MODEL)
        self._options, self._refusal = RunOptions(threads=threads), f"OpenVINO cannot load {path}"
        self._fixed = fixed_batch(manifest, self._options)
        with translate_errors(self._refusal):
            self._model: Any = executable(source, manifest.cpu_form)
        self._known: dict[str, dict[str, str]] = {}
        self._request: Any = None

    def __call__(
        self, images: NDArray[np.generic], runs: int
    ) -> tuple[NDArray[np.float32], tuple[LayerTime, ...]]:
        """Logits [N, classes] of ``images`` [N, ...], and each layer's mean time over ``runs`` in execution order.

        The counters are means over all runs since the model was compiled, so those of the warm-up are subtracted.
        """
        self._compile(len(images))
        with translate_errors("OpenVINO cannot run this engine"):
            self._infer(images, WARM_RUNS)
            before = {info.node_name: _ms(info) for info in self._request.profiling_info}
            logits = self._infer(images, runs)
            after = list(self._request.profiling_info)
        whole = WARM_RUNS + runs
        layers = (
            self._layer(info, (whole * _ms(info) - WARM_RUNS * before[info.node_name]) / runs)
            for info in after
            if _ms(info)  # a layer that was fused into another, or is too short for the clock, has no time
        )
        return logits, tuple(layers)

    def _compile(self, count: int) -> None:
        with translate_errors(self._refusal):
            model = of_batch(self._model, count) if count == self._fixed else self._model
            compiled = compile_model(model, self._options, counters=True)
        self._known = {
            op.get_friendly_name(): {key: str(value.value) for key, value in op.get_rt_info().items()}
            for op in compiled.get_runtime_model().get_ordered_ops()
        }
        self._request = compiled.create_infer_request()

    def _infer(self, images: NDArray[np.generic], runs: int) -> NDArray[np.float32]:
        for _ in range(runs):
            found = self._request.infer([images], share_inputs=True)
        return np.array(found[0], np.float32)

    def close(self) -> None:
        """Drop the compiled model; calling it twice is harmless."""
        self._model = self._request = None

    def _layer(self, info: Any, ms: float) -> LayerTime:
        known = self._known.get(info.node_name, {})
        origins = tuple(name for name in known.get("originalLayersNames", "").split(",") if name)
        return LayerTime(
            name=info.node_name,
            origins=origins or (info.node_name,),
            kind=_KINDS.get(known.get("layerType", info.node_type), "other"),
            implementation=info.exec_type,
            precision=known.get("runtimePrecision", ""),
            ms=max(ms, 0.0),
        )


def _ms(info: Any) -> float:
    return float(info.real_time.total_seconds() * 1e3)
