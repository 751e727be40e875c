"""The graph of an engine that OpenVINO executes exactly on this CPU: as it is stored, or lowered anew."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from rescompile.backends.cpu import forms
from rescompile.backends.openvino.compile import core, read_payload
from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import BackendError, BackendUnavailable
from rescompile.manifest import GRAPH, OPENVINO_MODEL, CpuForm
from rescompile.optional import installed

_ADVICE = "build with --cpu-form avx2"


def warn_of_another_form(path: Path, form: CpuForm | None) -> None:
    """Say at every load that an engine runs in another form than its own, and more slowly."""
    warnings.warn(
        f"{_refusal(path, form)}: it runs in the form avx2, which is slower; {_ADVICE}", stacklevel=3
    )


def _refusal(path: Path, form: CpuForm | None) -> str:
    return f"{path} has the form {form}, which this CPU does not compute exactly"


def executable(source: EngineSource, form: CpuForm | None, *, warn: bool = True) -> Any:
    """The OpenVINO model of an engine of this ``form``, lowered anew from ``model.onnx`` where this CPU is not exact.

    ``warn`` says that with a warning.

    Raises:
        RuntimeError: OpenVINO refuses the payload.
        EngineError: a file is missing or cannot be read.
        BackendUnavailable: this CPU is not exact, and the engine cannot be lowered here.
    """
    model, files = read_payload(source), files_in(source)
    if forms.computes_exactly(form):
        return model
    path = files.path(OPENVINO_MODEL)
    refusal = _refusal(path, form)
    if not (installed("onnx") and installed("onnx_graphsurgeon")):
        raise BackendUnavailable(f"{refusal}; {_ADVICE}, or install the extra 'build' to lower it here")
    import onnx

    from rescompile.backends.cpu.lowering import lower

    try:
        lowered = lower(onnx.load_model_from_string(files.read(GRAPH)))
    except BackendError as error:
        raise BackendUnavailable(f"{refusal} ({error}); {_ADVICE}") from error
    if warn:
        warn_of_another_form(path, form)
    again = core().read_model(lowered.SerializeToString())
    again.reshape(model.input(0).get_partial_shape())
    return again
