"""Compiling with OpenVINO: the one place that does it, so that what is verified is what is executed.

OpenVINO computes float layers in bfloat16 on CPUs that have it, unless it is told to infer in f32. Every model that is
executed here is compiled by ``compile_model``: engines, candidates, tests and the peers in ``benchmarks/``. The C++
runtime sets the same (``cpp/src/openvino_models.cpp``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from rescompile.backends.base import RUN_DEFAULTS, RunOptions
from rescompile.engine_files import EngineSource, files_in
from rescompile.errors import BackendError, EngineError
from rescompile.manifest import OPENVINO_MODEL, OPENVINO_WEIGHTS

TUNING = {"SNIPPETS_MODE": "DISABLE"}
"""Not in OpenVINO's manual: with its fusion of elementwise chains on, an identity block's add is no longer fused
into the convolution before it. The numbers are the same to the bit."""


@cache
def core() -> Any:
    """OpenVINO itself, one for the process: the libraries that read a model must outlive it."""
    import openvino as ov

    _started_in.append(os.getpid())
    return ov.Core()


_started_in: list[int] = []
"""The process that started OpenVINO; none before that."""


def check_not_forked() -> None:
    """Refuse what may wait for ever: threads that OpenVINO started before a fork are not in the new process.

    Raises:
        BackendError: names what to do instead.
    """
    if _started_in and _started_in[0] != os.getpid():
        raise BackendError(
            "this process was forked from one that had used OpenVINO, whose threads it does not have; start processes "
            "by spawn, or load no engine before the fork"
        )


def settings_of(options: RunOptions, *, tuned: bool = True) -> dict[str, Any]:
    """OpenVINO's settings for ``options``; an older version may not know the ``tuned`` ones."""
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": options.hint.upper(),
    }
    if options.threads is not None:
        settings["INFERENCE_NUM_THREADS"] = options.threads
    if options.streams is not None:
        settings["NUM_STREAMS"] = str(options.streams)
    return settings | TUNING if tuned else settings


def compile_model(
    source: Any, options: RunOptions = RUN_DEFAULTS, *, tuned: bool = True, counters: bool = False
) -> Any:
    """The model ``source`` compiled for this CPU.

    Args:
        source: the path of a model, a serialized ONNX graph, or an OpenVINO model.
        options: threads, hint and streams.
        tuned: use the settings that our engines gain from; without them, as a user of OpenVINO has it.
        counters: measure the time of each layer.

    Raises:
        RuntimeError: OpenVINO refuses the model.
    """
    return compile_noting(source, options, tuned=tuned, counters=counters)[0]


def compile_noting(
    source: Any, options: RunOptions = RUN_DEFAULTS, *, tuned: bool = True, counters: bool = False
) -> tuple[Any, tuple[str, ...]]:
    """``compile_model``, and notes on settings that this OpenVINO does not know."""
    import openvino as ov

    check_not_forked()
    model = core().read_model(source) if isinstance(source, (Path, bytes)) else source
    settings = settings_of(options, tuned=False) | ({"PERF_COUNT": "YES"} if counters else {})
    if not tuned:
        return core().compile_model(model, "CPU", settings), ()
    try:
        return core().compile_model(model, "CPU", settings | TUNING), ()
    except RuntimeError as error:
        if not any(key in str(error) for key in TUNING):
            raise
    return core().compile_model(model, "CPU", settings), (
        f"OpenVINO {ov.__version__} does not know {', '.join(TUNING)}: fewer residual adds are fused",
    )


def read_payload(source: EngineSource) -> Any:
    """The OpenVINO model of an engine, from the bytes that were checked.

    Raises:
        RuntimeError: OpenVINO refuses the model.
        EngineError: a file is missing or cannot be read.
    """
    files = files_in(source)
    model = core().read_model(files.read(OPENVINO_MODEL), files.read(OPENVINO_WEIGHTS))
    for operation in model.get_ops():
        if operation.get_type_name() in _LOOPS:
            raise EngineError(
                f"{files.path(OPENVINO_MODEL)} has a {operation.get_type_name()}, and nothing bounds how often it "
                "runs; build the engine again"
            )
    return model


_LOOPS = {"Loop", "TensorIterator"}
"""OpenVINO's operations that repeat a graph; no image network that is built here has one."""


@contextmanager
def translate_errors(what: str) -> Iterator[None]:
    """Turn an error of OpenVINO into a BackendError that begins with ``what``."""
    try:
        yield
    except RuntimeError as error:
        raise BackendError(f"{what}: {error_reason(error)}") from error


_THROWN = "CALLBACK HAS THROWN"
"""In a line that says which transformation failed; the reason follows."""


def error_reason(error: RuntimeError) -> str:
    """The reason in OpenVINO's message, without the lines that say where in its source it was raised."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    where = ("Exception from", "Check '", "FrontEnd API failed", "Model wasn't", "Summary")
    reasons = [line for line in lines if line and not line.startswith(where) and _THROWN not in line]
    return (reasons or lines or ["no reason given"])[0]
