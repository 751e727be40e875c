"""The graph of an engine that OpenVINO executes exactly on this CPU: as it is stored, or lowered anew."""

from __future__ import annotations

import warnings
from typing import Any

from rescompile.backends.cpu import forms
from rescompile.backends.openvino.compile import core, read_payload
from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import BackendError, BackendUnavailable
from rescompile.manifest import GRAPH, OPENVINO_MODEL, CpuForm
from rescompile.optional import installed


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
    path, advice = files.path(OPENVINO_MODEL), "build with --cpu-form avx2"
    refusal = f"{path} has the form {form}, which this CPU does not compute exactly"
    if not (installed("onnx") and installed("onnx_graphsurgeon")):
        raise BackendUnavailable(f"{refusal}; {advice}, or install the extra 'build' to lower it here")
    import onnx

    from rescompile.backends.cpu.lowering import lower

    try:
        lowered = lower(onnx.load_model_from_string(files.read(GRAPH)))
    except BackendError as error:
        raise BackendUnavailable(f"{refusal} ({error}); {advice}") from error
    if warn:
        warnings.warn(f"{refusal}: it runs in the form avx2, which is slower; {advice}", stacklevel=2)
    again = core().read_model(lowered.SerializeToString())
    again.reshape(model.input(0).get_partial_shape())
    return again
