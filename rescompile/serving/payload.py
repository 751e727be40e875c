"""The files of an engine that a server gets, and the server's name for the library that runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rescompile.errors import EngineError
from rescompile.manifest import (
    GRAPH,
    ONNXRUNTIME_MODEL,
    OPENVINO_MODEL,
    OPENVINO_WEIGHTS,
    TENSORRT_ENGINE,
    Manifest,
)

Server = Literal["triton", "openvino"]
SERVER_NAMES: dict[Server, str] = {
    "triton": "NVIDIA Triton Inference Server",
    "openvino": "OpenVINO Model Server",
}


LABELS = "labels.txt"


@dataclass(frozen=True, kw_only=True)
class Payload:
    """The files that a server runs."""

    backend: Literal["openvino", "tensorrt", "onnxruntime", "python"]
    """Triton Inference Server's name for the library."""
    files: dict[str, str]
    """Name in the version folder to name in the engine directory; the server opens the first. Empty for python, which
    takes the whole directory."""


_ENGINES = {
    "openvino": Payload(
        backend="openvino", files={name: name for name in (OPENVINO_MODEL, OPENVINO_WEIGHTS)}
    ),
    "tensorrt": Payload(backend="tensorrt", files={"model.plan": TENSORRT_ENGINE}),
}
_ONNX = Payload(backend="onnxruntime", files={GRAPH: GRAPH})
_ONNXRUNTIME = Payload(backend="onnxruntime", files={GRAPH: ONNXRUNTIME_MODEL})
_PYTHON = Payload(backend="python", files={})


def payload_of(manifest: Manifest, server: Server, *, onnx: bool, python: bool = False) -> Payload:
    """The files that ``server`` runs: those of the engine, or with ``onnx`` its deployable graph.

    Engines for which Triton Inference Server has no library run in our own runtime, and with ``python`` all do.

    Raises:
        EngineError: the server has no backend for such engines, or a file is not in the directory.
    """
    if python:
        payload = _PYTHON
    elif manifest.backend == "onnxruntime" and not onnx and ONNXRUNTIME_MODEL in manifest.files:
        payload = _ONNXRUNTIME
    elif onnx or manifest.backend == "onnxruntime":
        payload = _ONNX
    else:
        payload = _ENGINES.get(manifest.backend, _PYTHON)
    if server == "openvino" and payload.backend in ("tensorrt", "python"):
        raise EngineError(
            f"OpenVINO Model Server does not run {manifest.backend} engines; pass --server triton, or --onnx to serve "
            "the deployable graph"
        )
    missing = [name for name in payload.files.values() if name not in manifest.files]
    if missing:
        raise EngineError(
            f"the manifest does not list {missing[0]}, which the server would run; build the engine again"
        )
    return payload
