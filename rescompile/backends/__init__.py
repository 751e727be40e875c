"""Backends by name: each builds one kind of engine and runs it. A backend is imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import cast

from rescompile.backends.base import Backend
from rescompile.backends.cuda.devices import gpus
from rescompile.errors import UsageError, did_you_mean

BACKENDS = {
    "onnxruntime": "rescompile.backends.onnxruntime:OnnxRuntime",
    "openvino": "rescompile.backends.openvino.backend:OpenVino",
    "tensorrt": "rescompile.backends.tensorrt.backend:full",
    "tensorrt-rtx": "rescompile.backends.tensorrt.backend:rtx",
    "triton": "rescompile.backends.triton.backend:Triton",
}
"""Name to ``module:factory``; the factory takes no arguments."""


def get_backend(name: str) -> Backend:
    """The backend called ``name``; raises UsageError where there is none."""
    if name not in BACKENDS:
        known = list(BACKENDS)
        raise UsageError(
            f"--backend {name} is unknown; choose auto, {', '.join(known)}.{did_you_mean(name, known)}"
        )
    module, _, factory = BACKENDS[name].partition(":")
    return cast(Callable[[], Backend], getattr(importlib.import_module(module), factory))()


def choose_backend() -> tuple[str, str]:
    """The backend that ``--backend auto`` takes on this machine, and the reason for the user.

    TensorRT where it can build and run (a CUDA GPU and the library), else OpenVINO.
    """
    if not gpus():
        return "openvino", "the CPU engine, because this machine has no CUDA GPU"
    found = get_backend("tensorrt").availability()
    if found.build and found.run:
        return "tensorrt", found.reason
    return "openvino", f"the CPU engine, because {found.reason}"
