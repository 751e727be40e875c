"""The steps of Triton Inference Server's OpenVINO backend: how it reads, changes and compiles a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov

SETTINGS = ("INFERENCE_NUM_THREADS", "COMPILATION_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT")
"""Parameters that the backend hands over to OpenVINO; it ignores those that it does not know."""


def with_batch(path: Path, batch: int) -> Any:
    """The model at ``path`` as the backend changes it: the first dimension is the batch, and always the largest."""
    steps = ov.preprocess.PrePostProcessor(ov.Core().read_model(path))
    steps.input(0).tensor().set_layout(ov.Layout("N..."))
    model = steps.build()
    ov.set_batch(model, batch)
    return model


def as_triton_compiles(path: Path, batch: int, parameters: Mapping[str, str]) -> Any:
    """The model at ``path`` compiled as the backend does on a CPU with bfloat16.

    OpenVINO chooses bfloat16 there by itself. CPUs with AVX-512 compute in it if they are told to; others stay in f32.
    """
    core = ov.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    core.set_property("CPU", {name: parameters[name] for name in SETTINGS if name in parameters})
    return core.compile_model(with_batch(path, batch), "CPU", {"ALLOW_AUTO_BATCHING": True})
