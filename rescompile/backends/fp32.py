"""Runs the fp32 graph of an engine: by ONNX Runtime where it is installed, else by OpenVINO in FP32.

A build always has ONNX Runtime. Where engines only run, OpenVINO computes the reference; the two differ by the order of
their sums, about 1e-6 of the logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rescompile.backends.onnxruntime import reference_session
from rescompile.backends.openvino.compile import compile_model, translate_errors
from rescompile.optional import installed


class Fp32Session(Protocol):
    """A graph that is ready to run."""

    def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Logits [N, classes] of the graph's first output."""

    def tensors(self, images: NDArray[np.generic]) -> dict[str, NDArray[Any]]:
        """All outputs by name."""


class OpenVinoSession:
    """An fp32 ONNX graph, compiled by OpenVINO; a path takes half of the memory, because nothing holds its bytes."""

    def __init__(self, graph: bytes | Path) -> None:
        with translate_errors("OpenVINO cannot load the fp32 graph"):
            self._compiled: Any = compile_model(graph)

    def __call__(self, images: NDArray[np.generic]) -> NDArray[np.float32]:
        """Logits [N, classes] of ``images`` [N, ...]."""
        return next(iter(self.tensors(images).values())).astype(np.float32, copy=False)

    def tensors(self, images: NDArray[np.generic]) -> dict[str, NDArray[Any]]:
        """All outputs by name; raises BackendError where OpenVINO refuses the images."""
        with translate_errors("OpenVINO cannot run the fp32 graph on these images"):
            found = self._compiled(np.ascontiguousarray(images))
        return {port.get_any_name(): np.array(found[port]) for port in self._compiled.outputs}


def fp32_session(graph: bytes) -> tuple[Fp32Session, tuple[str, ...]]:
    """The graph, loaded, and a note where another library than usual runs it.

    Raises:
        BackendError: the library refuses the graph.
    """
    if installed("onnxruntime"):
        return reference_session(graph, optimize=True), ()
    note = "OpenVINO computed the fp32 reference, because ONNX Runtime is not installed here"
    return OpenVinoSession(graph), (note,)
