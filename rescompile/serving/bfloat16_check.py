"""Whether a graph that was rewritten for a server answers as the engine does, and how far its answers move on CPUs with
bfloat16, if the server does not set the precision.

There OpenVINO computes layers in bfloat16 that the graph does not keep in f32. CPUs with AVX-512 compute the same
without instructions for bfloat16, only more slowly, so that this can be measured on more machines than it happens on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from rescompile.backends.openvino.compile import core
from rescompile.errors import EngineError
from rescompile.metrics import relative_rms
from rescompile.wording import percent

IGNORED = 1e-4
"""Relative RMS that is not mentioned: less than fp16 weights cause."""
DIFFERENT = 0.01
"""Relative RMS that no other order of sums makes, also where it moves values across a rounding of INT8."""


def note(path: Path, images: NDArray[Any], engine: Any) -> str | None:
    """A sentence about the graph at ``path``, or None where nothing is to be said.

    Args:
        path: of OpenVINO's graph.
        images: as the graph takes them; the batch size is one that it takes.
        engine: the path or OpenVINO's model of the engine that the graph was made of; changed.

    Raises:
        EngineError: in f32 the graph does not answer as the engine does.
    """
    expected = _answers(_compiled(engine, len(images), "f32"), images)
    written = _error(expected, _answers(_compiled(path, len(images), "f32"), images))
    if not written < DIFFERENT:
        raise EngineError(
            f"the graph that was written for the server does not answer as the engine (relative RMS {written:.2g}), "
            "which is a fault of rescompile; serve the engine with --python or --server openvino"
        )
    elsewhere = "with --python or --server openvino it computes in f32"
    try:
        error = rounding(path, images)
    except RuntimeError:
        return f"OpenVINO does not compile this graph on CPUs with bfloat16 (AMX, AVX512-BF16): {elsewhere}"
    if error is None:
        return (
            "this CPU cannot show whether the server would round layers on CPUs with bfloat16 (AMX, AVX512-BF16): "
            f"{elsewhere}"
        )
    if error <= IGNORED:
        return None
    return (
        "on CPUs with bfloat16 (AMX, AVX512-BF16) the server rounds some layers, which moves the answers by "
        f"{percent(round(error, 5))} (relative RMS, golden images): {elsewhere}"
    )


def rounding(path: Path, images: NDArray[Any]) -> float | None:
    """The largest relative RMS of an output between bfloat16 where the graph allows it and f32.

    None where this CPU cannot compute in bfloat16.

    Raises:
        RuntimeError: OpenVINO refuses the graph.
    """
    f32, bf16 = (_compiled(path, len(images), precision) for precision in ("f32", "bf16"))
    if bf16.get_property("INFERENCE_PRECISION_HINT").to_string() != "bf16":
        return None
    return _error(_answers(f32, images), _answers(bf16, images))


def _answers(compiled: Any, images: NDArray[Any]) -> list[NDArray[Any]]:
    found = compiled([images])
    return [found[index].copy() for index in range(len(compiled.outputs))]


def _error(expected: list[NDArray[Any]], found: list[NDArray[Any]]) -> float:
    return max(relative_rms(one, other) for one, other in zip(expected, found, strict=True))


def _compiled(model: Any, batch: int, precision: str) -> Any:
    import openvino as ov

    model = core().read_model(model) if isinstance(model, Path) else model
    shape = model.input(0).get_partial_shape()
    shape[0] = ov.Dimension(batch)  # the server sets it before it compiles the graph
    model.reshape(shape)
    return core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
