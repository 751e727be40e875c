"""``config.json`` of OpenVINO Model Server."""

from __future__ import annotations

from typing import Any

from rescompile.backends.openvino.compile import compile_model, error_reason
from rescompile.errors import EngineError


def config_of(name: str, *, instances: int) -> dict[str, Any]:
    """The configuration file for one model on the CPU; its versions are the numbered folders in ``name``.

    It infers in f32, also on processors with bfloat16, because our own runtime was verified in f32.
    """
    plugin = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if instances > 1:
        plugin |= {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": str(instances)}
    model: dict[str, Any] = {"name": name, "base_path": name, "target_device": "CPU", "plugin_config": plugin}
    if instances > 1:
        model["nireq"] = instances  # requests that run at the same time
    return {"model_config_list": [{"config": model}]}


def check_runs(graph: bytes) -> None:
    """Refuse an ONNX ``graph`` that OpenVINO does not take as it is; our own backend lowers it first.

    Raises:
        EngineError: names what to serve instead.
    """
    try:
        compile_model(graph, tuned=False)
    except RuntimeError as error:
        raise EngineError(
            f"OpenVINO does not run the graph of this engine as it is ({error_reason(error)}); serve an engine of "
            "--backend openvino, without --onnx, or pass --server triton"
        ) from error
