"""The files of an engine that a server gets, and the server's name for the library that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rescompile.errors import EngineError
from rescompile.manifest import GRAPH, OPENVINO_MODEL, OPENVINO_WEIGHTS, TENSORRT_ENGINE, Manifest

Server = Literal["triton", "openvino"]
SERVER_NAMES: dict[Server, str] = {
    "triton": "NVIDIA Triton Inference Server",
    "openvino": "OpenVINO Model Server",
}


LABELS = "labels.txt"


@dataclass(frozen=True, kw_only=True)
class Payload:
    """The files that a server runs."""

    backend: Literal["openvino", "tensorrt", "onnxruntime"]
    """Triton Inference Server's name for the library."""
    files: dict[str, str]
    """Name in the version folder to name in the engine directory; the server opens the first."""


_ENGINES = {
    "openvino": Payload(
        backend="openvino", files={name: name for name in (OPENVINO_MODEL, OPENVINO_WEIGHTS)}
    ),
    "tensorrt": Payload(backend="tensorrt", files={"model.plan": TENSORRT_ENGINE}),
}
_ONNX = Payload(backend="onnxruntime", files={GRAPH: GRAPH})
_NO_SERVER = {
    "tensorrt-rtx": "no inference server has a backend for TensorRT-RTX engines",
    "triton": "no inference server has a backend for Triton-kernel engines (Triton Server only shares the name)",
}


def payload_of(manifest: Manifest, server: Server, *, onnx: bool) -> Payload:
    """The files that ``server`` runs: those of the engine, or with ``onnx`` its deployable graph.

    Raises:
        EngineError: the server has no backend for such engines, or a file is not in the directory.
    """
    payload = _ONNX if onnx or manifest.backend == "onnxruntime" else _ENGINES.get(manifest.backend)
    if payload is None:
        raise EngineError(
            f"{_NO_SERVER[manifest.backend]}; pass --onnx to serve the deployable graph, or build with "
            "--backend openvino or --backend tensorrt"
        )
    if server == "openvino" and payload.backend == "tensorrt":
        raise EngineError(
            "OpenVINO Model Server does not run TensorRT engines; pass --server triton, or --onnx to serve "
            "the deployable graph"
        )
    missing = [name for name in payload.files.values() if name not in manifest.files]
    if missing:
        raise EngineError(
            f"the manifest does not list {missing[0]}, which the server would run; build the engine again"
        )
    return payload
