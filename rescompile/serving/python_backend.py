"""Serves an engine by rescompile's own runtime inside Triton Inference Server's Python backend.

The server starts a process for each instance, which loads the engine directory beside ``model.py`` and tests it on its
golden images. Requests that the server gathered are run as one batch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from rescompile.errors import RescompileError
from rescompile.runtime.engine import Engine
from rescompile.runtime.golden import in_order, read_golden

ENGINE = "engine"
"""The folder of the engine in the version folder."""
MODEL = "model.py"
MODEL_TEXT = f'''"""Triton Inference Server runs this file; the engine is in the folder {ENGINE}."""

from rescompile.serving.python_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


class TritonPythonModel:
    """One instance of the engine; the server calls these methods, by these names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine on the device that the server chose; an error here is shown in the server's log."""
        if args["model_instance_kind"] == "GPU":
            _see_only(int(args["model_instance_device_id"]))
        from rescompile.runtime.loading import load

        directory = Path(args["model_repository"]) / args["model_version"] / ENGINE
        self._engine = load(directory)
        # a CPU engine is compiled for other batches than the usual one when it gets the first: not in a request
        images, _ = read_golden(directory, self._engine.manifest)
        least, usual, most = msgspec.structs.astuple(self._engine.manifest.batch)
        other = next((size for size in (least, most) if size != usual), None)
        if other is not None:
            self._engine(images[np.arange(other) % len(images)])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in their order."""
        import triton_python_backend_utils as server  # the server's own module

        name = self._engine.manifest.inputs[0].name
        # by DLPack both ways: the arrays of Triton Inference Server 2.51 are wrong under NumPy 2, without an error
        images = [np.from_dlpack(server.get_input_tensor_by_name(request, name)) for request in requests]
        responses = []
        for answer in answers(self._engine, images):
            if isinstance(answer, RescompileError):
                responses.append(server.InferenceResponse(error=server.TritonError(str(answer))))
                continue
            named = zip(self._engine.manifest.outputs, answer, strict=True)
            tensors = [
                server.Tensor.from_dlpack(output.name, np.require(values, requirements=("C", "W")))
                for output, values in named
            ]
            responses.append(server.InferenceResponse(output_tensors=tensors))
        return responses

    def finalize(self) -> None:
        """Free the engine."""
        self._engine.close()


def answers(
    engine: Engine, requests: Sequence[NDArray[Any]]
) -> list[tuple[NDArray[np.float32], ...] | RescompileError]:
    """All outputs for each of the ``requests`` [n, ...], or the error where ``engine`` refuses it.

    They run as one batch. Where that is refused, each runs alone, so that a wrong one does not spoil the others.
    """
    try:
        found = in_order(engine(np.concatenate(requests)), engine.manifest)
    except RescompileError as error:
        if len(requests) == 1:
            return [error]
        return [answers(engine, [request])[0] for request in requests]
    ends = np.cumsum([len(request) for request in requests])[:-1]
    return list(zip(*(np.split(output, ends) for output in found), strict=True))


def _see_only(device: int) -> None:
    """Make the ``device``-th GPU that this process sees its only one; the runtime takes the first."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[device] if seen else str(device)
